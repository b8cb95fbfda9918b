-- Written at the origin only: a catalog.
CREATE TABLE airports (
  faa  TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  lat  REAL NOT NULL,
  lon  REAL NOT NULL,
  alt  INTEGER,
  tz   INTEGER
);

-- Written anywhere: each flight is a row of its own, so nodes rarely meet.
CREATE TABLE flights (
  year           INTEGER NOT NULL,
  month          INTEGER NOT NULL,
  day            INTEGER NOT NULL,
  carrier        TEXT NOT NULL,
  flight         INTEGER NOT NULL,
  origin         TEXT NOT NULL,
  sched_dep_time INTEGER NOT NULL,
  dest           TEXT NOT NULL,
  tailnum        TEXT,
  dep_delay      INTEGER,
  arr_delay      INTEGER,
  air_time       INTEGER,
  distance       INTEGER NOT NULL,
  PRIMARY KEY (year, month, day, carrier, flight, origin, sched_dep_time)
);

-- Written anywhere, and by several at once: passengers are counted at every door.
CREATE TABLE boarding (
  flight  TEXT NOT NULL PRIMARY KEY,
  gate    TEXT,
  remark  TEXT,
  boarded INTEGER NOT NULL DEFAULT 0
);
