-- A small shop: what it sells, how much of it there is, and who ordered what.
-- This is plain SQLite; nothing in it belongs to littoral. Who may write a table, and how concurrent
-- writes merge, stands in a policies file beside it.

-- The catalog. Only the origin changes it, so UNIQUE means what it says everywhere.
CREATE TABLE products (
  sku   INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,
  price INTEGER NOT NULL CHECK (price >= 0)   -- in cents: money is never a REAL
);

-- What is left of each product. The key is given by the application, never by SQLite: two nodes that
-- let SQLite count would hand out the same number.
-- There is no CHECK (quantity >= 0) here on purpose. A CHECK is judged where a statement runs; two nodes
-- that each see one piece left may both sell it, and neither breaks the rule by itself. Whether that can
-- happen depends on who may write the table, and that is what the scenarios show.
CREATE TABLE stock (
  sku      INTEGER PRIMARY KEY,
  quantity INTEGER NOT NULL DEFAULT 0
);

-- One row per order. Keys are UUIDs, so that every node can make them alone.
CREATE TABLE orders (
  id        TEXT PRIMARY KEY NOT NULL,
  sku       INTEGER NOT NULL,
  quantity  INTEGER NOT NULL CHECK (quantity > 0),
  taken_at  TEXT NOT NULL                     -- the node that took the order
) WITHOUT ROWID;

CREATE INDEX orders_by_sku ON orders (sku);
