//! What a cluster begins with: the entries the origin writes at its first start.
//!
//! They are ordinary entries, in their final formats: the `Join`s of all members, the origin's own
//! first, then the schema, then the policies. Edges start empty and receive them through the log.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::{
    driver::Identity,
    entry::{EntryHeader, Logged, Member, TableChange, TableDeclaration, codec::Body},
    error::{GenesisError, OpenError},
    hlc::HlcClock,
    id::{AuthorId, Incarnation, NodeId, SchemaVersion},
    log::Log,
    policy::TablePolicy,
    schema::{catalog, ddl},
    time::WallTime,
    version::Dot,
};

/// What the origin begins a cluster with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Genesis {
    /// Every member; the origin, which is the node that is given the genesis, first.
    pub members: Vec<(NodeId, Incarnation)>,
    /// The text of `schema.sql`: CREATE TABLE, INDEX, VIEW and TRIGGER.
    pub schema: String,
    /// Policies by table name. A table that is left out gets the default: `read-after-write`, written
    /// at the origin.
    pub policies: BTreeMap<String, TablePolicy>,
}

impl Genesis {
    /// Checks schema and policies as the origin will at its first start, and lists the tables.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<Vec<TableDeclaration>, GenesisError> {
        ddl::plan(&self.schema, &self.policies).map(|plan| plan.tables)
    }

    /// Writes the first entries into an empty file, within the transaction under way.
    pub(crate) fn write(
        &self,
        conn: &Connection,
        identity: &Identity,
        wall: WallTime,
    ) -> Result<(), OpenError> {
        let ours = (identity.node.clone(), identity.incarnation);
        if self.members.first() != Some(&ours) {
            return Err(GenesisError::NotTheOrigin(identity.node.clone()).into());
        }
        let plan = ddl::plan(&self.schema, &self.policies)?;
        let mut scribe = Scribe { conn, log: Log::default(), hlc: HlcClock::default(), wall };
        for (counter, (node, incarnation)) in (1u32..).zip(&self.members) {
            let author = AuthorId { term: AuthorId::FIRST.term, counter };
            let member = Member { author, node: node.clone(), incarnation: *incarnation };
            let mut join = Body::default();
            join.push_join(&member);
            scribe.write(join, SchemaVersion(0))?;
            catalog::add_member(conn, &member)?;
        }
        if !plan.statements.is_empty() {
            let mut schema = Body::default();
            schema.push_ddl(plan.statements.iter().map(String::as_str));
            let changes: Vec<TableChange> =
                plan.tables.into_iter().map(TableChange::Declared).collect();
            schema.push_policy(&changes);
            scribe.write(schema, SchemaVersion(0))?;
            for statement in &plan.statements {
                conn.execute_batch(statement)?;
            }
            catalog::carry_out(conn, &changes, scribe.log.last())?;
            catalog::set_version(conn, SchemaVersion(1))?;
        }
        Ok(())
    }
}

/// Appends the origin's entries.
struct Scribe<'c> {
    conn: &'c Connection,
    log: Log,
    hlc: HlcClock,
    wall: WallTime,
}

impl Scribe<'_> {
    fn write(&mut self, body: Body, schema: SchemaVersion) -> rusqlite::Result<()> {
        let head = self.log.head(AuthorId::FIRST);
        let entry = body.into_entry(EntryHeader {
            dot: Dot { author: AuthorId::FIRST, seq: head.seq + 1 },
            hlc: self.hlc.tick(self.wall),
            previous: head.digest,
            schema,
            under: 0,
        });
        self.log.append(self.conn, Logged::Whole(entry))?;
        Ok(())
    }
}
