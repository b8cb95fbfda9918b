//! The TOML file of a scenario, turned into [`Scenario`]: parsed once into types that cannot be wrong
//! later. Paths in it are relative to its directory. `docs/simulation.md` has every key.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use littoral::NodeId;
use serde::Deserialize;

use super::{
    Crowd, Invariant, Links, On, Scenario, When,
    blocks::{self, Statement},
    mistake::{Mistake, suggestion},
    policies,
};
use crate::{
    clock::{MS, Nanos, SECOND},
    fault::{Fault, Kind, Stop},
    network::LinkPlan,
    world::Topology,
};

const MAX_NODES: usize = 16;
const MAX_CLIENTS: u32 = 200;
const MAX_TIME: Nanos = 3600 * SECOND;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    schema: PathBuf,
    policies: Option<PathBuf>,
    setup: Option<PathBuf>,
    world: RawWorld,
    #[serde(default)]
    link: Vec<RawLink>,
    #[serde(default)]
    workload: BTreeMap<String, RawWorkload>,
    #[serde(default)]
    faults: RawFaults,
    #[serde(default)]
    invariant: Vec<RawInvariant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorld {
    nodes: Vec<String>,
    topology: Option<String>,
    latency: Option<String>,
    time: Option<String>,
    synchronous: Option<String>,
    check_every: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    between: Vec<String>,
    latency: Option<String>,
    bandwidth: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    file: PathBuf,
    clients: Option<u32>,
    at: Option<Words>,
    think: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

impl Words {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Several(words) => words,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFaults {
    random: Option<Words>,
    #[serde(default)]
    always: Vec<RawFault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFault {
    at: String,
    #[serde(rename = "for")]
    length: Option<String>,
    partition: Option<Vec<Vec<String>>>,
    cut: Option<Vec<String>>,
    stop: Option<String>,
    kill: Option<String>,
    power_cut: Option<String>,
    disk_full: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInvariant {
    name: String,
    sql: Option<String>,
    file: Option<PathBuf>,
    when: Option<String>,
    on: Option<String>,
}

/// What toml says of a file, with a suggestion where a key is not known.
pub(super) fn syntax(file: &str, error: &toml::de::Error) -> Mistake {
    let message = error.message();
    let mistake = Mistake::new(file, error.to_string().trim_end().to_owned());
    // Serde lists the key and those there are, each between backticks.
    let mut words = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), words.next()) {
        (true, Some(unknown)) => mistake.hint(suggestion(unknown, words)),
        _ => mistake,
    }
}

/// Reads a scenario and the files that it names.
///
/// # Errors
/// What is wrong, where, and what to do about it.
pub(super) fn load(path: &Path) -> Result<Scenario, Mistake> {
    let file = Reader { name: path.display().to_string(), directory: path.parent() };
    let text = fs::read_to_string(path)
        .map_err(|error| Mistake::new(&file.name, format!("cannot be read: {error}")))?;
    let raw: RawScenario = toml::from_str(&text).map_err(|error| syntax(&file.name, &error))?;
    file.scenario(raw)
}

struct Reader<'p> {
    name: String,
    directory: Option<&'p Path>,
}

impl Reader<'_> {
    fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Mistake {
        Mistake::new(&self.name, format!("{key}: {what}"))
    }

    /// Reads a file that the scenario names. Gives its name and its text.
    fn text(&self, key: &str, path: &Path) -> Result<(String, String), Mistake> {
        let path = self.directory.unwrap_or_else(|| Path::new("")).join(path);
        let name = path.display().to_string();
        let text = fs::read_to_string(&path)
            .map_err(|error| self.wrong(key, format!("cannot read {name}: {error}")))?;
        Ok((name, text))
    }

    fn scenario(&self, raw: RawScenario) -> Result<Scenario, Mistake> {
        let (schema_file, schema) = self.text("schema", &raw.schema)?;
        let policies = match &raw.policies {
            None => BTreeMap::new(),
            Some(path) => {
                let (name, text) = self.text("policies", path)?;
                policies::read(&text, &name)?
            }
        };
        let setup = self.setup(raw.setup.as_deref())?;
        let nodes = self.nodes(&raw.world.nodes)?;
        let time = match &raw.world.time {
            None => 20 * SECOND,
            Some(text) => self.duration("world.time", text)?,
        };
        if !(SECOND..=MAX_TIME).contains(&time) {
            return Err(self.wrong("world.time", "expected 1s to 60m"));
        }
        let check_every = match &raw.world.check_every {
            None => 250 * MS,
            Some(text) => self.duration("world.check_every", text)?.max(MS),
        };
        let full = match raw.world.synchronous.as_deref() {
            None | Some("full") => true,
            Some("normal") => false,
            Some(other) => {
                let what = format!("{other:?}: expected \"full\" or \"normal\"");
                return Err(self.wrong("world.synchronous", what));
            }
        };
        let links = self.links(&raw, &nodes)?;
        let faults = self.always(&raw.faults.always, &nodes, &links, time)?;
        let random = self.random(raw.faults.random.as_ref())?;
        let mut crowds = Vec::new();
        for (name, workload) in &raw.workload {
            crowds.push(self.crowd(name, workload, &nodes)?);
        }
        if crowds.is_empty() {
            return Err(self
                .wrong("workload", "there are no clients")
                .hint("add [workload.NAME] with file = \"….sql\""));
        }
        let mut invariants = Vec::new();
        for invariant in &raw.invariant {
            invariants.push(self.invariant(invariant, &nodes)?);
        }
        if invariants.is_empty() {
            return Err(self
                .wrong("invariant", "there is none, so nothing of yours would be checked")
                .hint(
                    "add [[invariant]] with name and sql; a row that it returns is a violation",
                ));
        }
        Ok(Scenario {
            file: self.name.clone(),
            schema_file,
            schema,
            policies,
            setup,
            nodes,
            links,
            time,
            full,
            check_every,
            crowds,
            random,
            faults,
            invariants,
            keys: BTreeMap::new(),
        })
    }

    fn setup(&self, path: Option<&Path>) -> Result<Vec<Statement>, Mistake> {
        let Some(path) = path else { return Ok(Vec::new()) };
        let (name, text) = self.text("setup", path)?;
        let statements = blocks::split(&text, &name, 1)?;
        match statements.iter().find(|statement| !statement.parameters.is_empty()) {
            None => Ok(statements),
            Some(statement) => {
                Err(statement.mistake("a parameter, which nothing gives a value here"))
            }
        }
    }

    fn nodes(&self, names: &[String]) -> Result<Vec<String>, Mistake> {
        if !(2..=MAX_NODES).contains(&names.len()) {
            let what = format!("{} nodes: expected 2 to {MAX_NODES}", names.len());
            return Err(self.wrong("world.nodes", what));
        }
        let mut nodes: Vec<String> = Vec::new();
        for name in names {
            if NodeId::new(name).is_err()
                || ["rest", "every", "origin", "edges", "any"].contains(&&**name)
            {
                let what = format!(
                    "{name:?}: expected 1 to 32 lowercase letters, digits and hyphens, beginning \
                     with a letter, and none of the words rest, every, origin, edges and any"
                );
                return Err(self.wrong("world.nodes", what));
            }
            if nodes.contains(name) {
                return Err(self.wrong("world.nodes", format!("{name:?} stands there twice")));
            }
            nodes.push(name.clone());
        }
        Ok(nodes)
    }

    fn node(&self, key: &str, name: &str, nodes: &[String]) -> Result<usize, Mistake> {
        nodes.iter().position(|node| node == name).ok_or_else(|| {
            self.wrong(key, format!("there is no node {name:?}"))
                .hint(suggestion(name, nodes.iter().map(String::as_str)))
        })
    }

    fn pair(&self, key: &str, names: &[String], nodes: &[String]) -> Result<[usize; 2], Mistake> {
        let [one, other] = names else {
            return Err(self.wrong(key, "expected the two nodes of a link"));
        };
        let ends = [self.node(key, one, nodes)?, self.node(key, other, nodes)?];
        if ends[0] == ends[1] {
            return Err(self.wrong(key, format!("{one:?} stands there twice")));
        }
        Ok(ends)
    }

    fn links(&self, raw: &RawScenario, nodes: &[String]) -> Result<Links, Mistake> {
        let latency = match &raw.world.latency {
            None => None,
            Some(text) => Some(self.range("world.latency", text)?),
        };
        let topology = match raw.world.topology.as_deref() {
            None => None,
            Some(word) => Some(self.word("world.topology", word, &TOPOLOGIES)?),
        };
        if raw.link.is_empty() {
            return Ok(Links::Drawn { topology, latency });
        }
        if topology.is_some() {
            return Err(
                self.wrong("world.topology", "contradicts [[link]], which names every link")
            );
        }
        let mut plans: Vec<LinkPlan> = Vec::new();
        for link in &raw.link {
            let ends = self.pair("link.between", &link.between, nodes)?;
            if plans.iter().any(|plan| plan.ends == ends || plan.ends == [ends[1], ends[0]]) {
                let what = format!("{} is linked twice", link.between.join(" to "));
                return Err(self.wrong("link.between", what));
            }
            let (low, high) = match &link.latency {
                None => latency.unwrap_or((10 * MS, 60 * MS)),
                Some(text) => self.range("link.latency", text)?,
            };
            let bandwidth = match link.bandwidth {
                None => 1_000_000,
                Some(bytes) => u64::try_from(bytes)
                    .ok()
                    .filter(|bytes| (1000..=1_000_000_000).contains(bytes))
                    .ok_or_else(|| {
                        let what = format!("{bytes}: expected 1000 to 1000000000 bytes per second");
                        self.wrong("link.bandwidth", what)
                    })?,
            };
            plans.push(LinkPlan { ends, latency: low, jitter: high - low, bandwidth });
        }
        let mut reached = vec![0];
        for place in 0..nodes.len() {
            let Some(&from) = reached.get(place) else {
                let alone = (0..nodes.len()).find(|node| !reached.contains(node));
                let name = alone.map_or("", |node| nodes[node].as_str());
                return Err(self.wrong("link", format!("no path of links leads to {name}")));
            };
            for plan in plans.iter().filter(|plan| plan.ends.contains(&from)) {
                reached.extend(
                    plan.ends
                        .iter()
                        .filter(|end| !reached.contains(end))
                        .copied()
                        .collect::<Vec<_>>(),
                );
            }
        }
        Ok(Links::Told(plans))
    }

    fn crowd(&self, name: &str, raw: &RawWorkload, nodes: &[String]) -> Result<Crowd, Mistake> {
        let key = |field: &str| format!("workload.{name}.{field}");
        let (file, text) = self.text(&key("file"), &raw.file)?;
        let blocks = blocks::read(&text, &file)?;
        let clients = raw.clients.unwrap_or(1);
        if !(1..=MAX_CLIENTS).contains(&clients) {
            return Err(
                self.wrong(&key("clients"), format!("{clients}: expected 1 to {MAX_CLIENTS}"))
            );
        }
        let mut at = Vec::new();
        let anywhere = Words::One("any".to_owned());
        for word in raw.at.as_ref().unwrap_or(&anywhere).as_slice() {
            match word.as_str() {
                "origin" => at.push(0),
                "edges" => at.extend(1..nodes.len()),
                "any" => at.extend(0..nodes.len()),
                name => {
                    let words = ["origin", "edges", "any"].into_iter();
                    at.push(self.node(&key("at"), name, nodes).map_err(|mistake| {
                        mistake
                            .hint(suggestion(name, words.chain(nodes.iter().map(String::as_str))))
                    })?);
                }
            }
        }
        if at.is_empty() {
            return Err(self.wrong(&key("at"), "expected at least one node"));
        }
        let think = match &raw.think {
            None => (50 * MS, 500 * MS),
            Some(text) => self.range(&key("think"), text)?,
        };
        Ok(Crowd { name: name.to_owned(), blocks, clients, at, think })
    }

    fn random(&self, words: Option<&Words>) -> Result<Vec<Kind>, Mistake> {
        let Some(words) = words else { return Ok(Kind::ALL.to_vec()) };
        match words {
            Words::One(word) if word == "all" => Ok(Kind::ALL.to_vec()),
            Words::One(word) if word == "none" => Ok(Vec::new()),
            words => words
                .as_slice()
                .iter()
                .map(|word| self.word("faults.random", word, &KINDS))
                .collect(),
        }
    }

    fn always(
        &self,
        raw: &[RawFault],
        nodes: &[String],
        links: &Links,
        time: Nanos,
    ) -> Result<Vec<(Nanos, Fault)>, Mistake> {
        const KEY: &str = "faults.always";
        let mut faults = Vec::new();
        for fault in raw {
            let at = self.duration(&format!("{KEY}.at"), &fault.at)?;
            if at >= time {
                let what = format!("at = {:?} is not within world.time", fault.at);
                return Err(self.wrong(KEY, what));
            }
            let length = match &fault.length {
                None => SECOND,
                Some(text) => self.duration(&format!("{KEY}.for"), text)?,
            };
            let stops = [
                (&fault.stop, Stop::Clean),
                (&fault.kill, Stop::Kill),
                (&fault.power_cut, Stop::PowerCut),
            ];
            let mut meant = Vec::new();
            for (name, stop) in stops {
                if let Some(name) = name {
                    let machine = self.node(KEY, name, nodes)?;
                    meant.push(Fault::stop(machine, stop, length));
                }
            }
            if let Some(groups) = &fault.partition {
                let group = self.partition(groups, nodes)?;
                meant.push(Fault::Partition { group, length, silent: false });
            }
            if let Some(names) = &fault.cut {
                let Links::Told(plans) = links else {
                    return Err(self
                        .wrong(KEY, "cut names a link, and which links there are is drawn")
                        .hint("name the links with [[link]], or use partition"));
                };
                let ends = self.pair(KEY, names, nodes)?;
                let is_it = |plan: &LinkPlan| ends.iter().all(|end| plan.ends.contains(end));
                let link = plans.iter().position(is_it).ok_or_else(|| {
                    self.wrong(KEY, format!("there is no link between {}", names.join(" and ")))
                })?;
                meant.push(Fault::Cut { link, down: length });
            }
            if let Some(name) = &fault.disk_full {
                let machine = self.node(KEY, name, nodes)?;
                meant.push(Fault::DiskFull { machine, length });
            }
            match meant.len() {
                1 => faults.extend(meant.into_iter().map(|fault| (at, fault))),
                _ => {
                    return Err(self.wrong(
                        KEY,
                        "expected one of partition, cut, stop, kill, power_cut and disk_full in each",
                    ));
                }
            }
        }
        Ok(faults)
    }

    /// Who is in the first group.
    fn partition(&self, groups: &[Vec<String>], nodes: &[String]) -> Result<Vec<bool>, Mistake> {
        const KEY: &str = "faults.always.partition";
        let [one, other] = groups else {
            return Err(self.wrong(KEY, "expected two groups: [[\"a\"], [\"rest\"]]"));
        };
        let mut group = vec![None; nodes.len()];
        for (names, first) in [(one, true), (other, false)] {
            for name in names.iter().filter(|name| *name != "rest") {
                let place = &mut group[self.node(KEY, name, nodes)?];
                if place.replace(first).is_some() {
                    return Err(self.wrong(KEY, format!("{name:?} stands there twice")));
                }
            }
        }
        let rest = [one, other].map(|names| names.iter().any(|name| name == "rest"));
        if rest == [true, true] {
            return Err(self.wrong(KEY, "\"rest\" stands in both groups"));
        }
        if let Some(place) = group.iter().position(Option::is_none)
            && rest == [false, false]
        {
            return Err(self
                .wrong(KEY, format!("{:?} is in neither group", nodes[place]))
                .hint("\"rest\" in one of them stands for all others"));
        }
        Ok(group.into_iter().map(|first| first.unwrap_or(rest[0])).collect())
    }

    fn invariant(&self, raw: &RawInvariant, nodes: &[String]) -> Result<Invariant, Mistake> {
        let key = |field: &str| format!("invariant {:?}.{field}", raw.name);
        let (file, sql) = match (&raw.sql, &raw.file) {
            (Some(sql), None) => (self.name.clone(), sql.clone()),
            (None, Some(path)) => self.text(&key("file"), path)?,
            _ => return Err(self.wrong(&key("sql"), "expected either sql or file")),
        };
        let place = format!("{file}: invariant {:?}", raw.name);
        let mut statements = blocks::split(&sql, &file, 1)?;
        let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
            return Err(Mistake::new(place, "expected one SELECT"));
        };
        let when = match raw.when.as_deref() {
            None => When::Always,
            Some(word) => self.word(&key("when"), word, &WHENS)?,
        };
        let on = match raw.on.as_deref() {
            None | Some("every") => On::Every,
            Some("origin") => On::Node(0),
            Some(name) => On::Node(self.node(&key("on"), name, nodes)?),
        };
        Ok(Invariant {
            name: raw.name.clone(),
            place,
            sql: statement.sql,
            when,
            on,
            reads: Vec::new(),
        })
    }

    fn word<T: Clone>(&self, key: &str, word: &str, known: &[(&str, T)]) -> Result<T, Mistake> {
        known.iter().find(|(name, _)| *name == word).map(|(_, meaning)| meaning.clone()).ok_or_else(
            || {
                self.wrong(key, format!("unknown word {word:?}"))
                    .hint(suggestion(word, known.iter().map(|(name, _)| *name)))
            },
        )
    }

    fn duration(&self, key: &str, text: &str) -> Result<Nanos, Mistake> {
        duration(text).ok_or_else(|| {
            let what = format!("{text:?}: expected a time such as \"250ms\", \"20s\" or \"2m\"");
            self.wrong(key, what)
        })
    }

    fn range(&self, key: &str, text: &str) -> Result<(Nanos, Nanos), Mistake> {
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let range = (self.duration(key, low.trim())?, self.duration(key, high.trim())?);
        if range.0 > range.1 || range.1 > MAX_TIME {
            let what = format!("{text:?}: expected a time or a range such as \"20ms..80ms\"");
            return Err(self.wrong(key, what));
        }
        Ok(range)
    }
}

fn duration(text: &str) -> Option<Nanos> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "ms" => MS,
        "s" => SECOND,
        "m" => 60 * SECOND,
        _ => return None,
    };
    number.checked_mul(unit)
}

const TOPOLOGIES: [(&str, Topology); 5] = [
    ("star", Topology::Star),
    ("chain", Topology::Line),
    ("ring", Topology::Ring),
    ("tree", Topology::Tree),
    ("mesh", Topology::Mesh),
];

const WHENS: [(&str, When); 3] =
    [("always", When::Always), ("converged", When::Converged), ("final", When::Final)];

const KINDS: [(&str, Kind); 12] = [
    ("stop", Kind::Clean),
    ("kill", Kind::Kill),
    ("power-cut", Kind::PowerCut),
    ("cut", Kind::Cut),
    ("block", Kind::Block),
    ("partition", Kind::Partition),
    ("clock-jump", Kind::ClockJump),
    ("disk-full", Kind::DiskFull),
    ("slow-disk", Kind::SlowDisk),
    ("sync-fails", Kind::SyncFails),
    ("wrong-clock", Kind::WrongClock),
    ("foreign-write", Kind::ForeignWrite),
];
