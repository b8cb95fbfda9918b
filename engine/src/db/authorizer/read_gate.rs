//! [`ReadGate`]: the judge of a reader's connection.

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::{Restriction, is_reading_pragma, refused::refused};
use crate::{
    db::routing::{self, Admission, Elsewhere, Touches},
    grants,
    policy::OnUnreachable,
    testing::{Bug, planted},
};

/// The judge of a reader's connection.
#[derive(Debug, Default)]
pub(crate) struct ReadGate {
    pub(crate) restriction: Option<Restriction>,
    /// The engine's own statements are prepared at the moment.
    pub(crate) engine: bool,
    /// What the statement refused last wanted, and nobody gets.
    pub(crate) forbidden: Option<String>,
    /// What the statement refused last would have needed.
    pub(crate) missing: Option<String>,
    /// A statement is only prepared, to see what it touches.
    pub(crate) touches: Option<Touches>,
    /// The tables that are read at the origin, which this node is not.
    pub(crate) elsewhere: Elsewhere,
    /// Those of them may be read that may be stale.
    pub(crate) stale: bool,
    /// One of them that the statement refused last wanted to read.
    pub(crate) refused: Option<String>,
    /// The tables whose rows here are too old to be read.
    pub(crate) old: routing::Old,
    /// What one of them has for the statement that was refused last.
    pub(crate) refused_old: Option<Admission>,
}

impl ReadGate {
    /// Judges one action of a statement.
    pub(crate) fn judge(&mut self, context: &AuthContext<'_>) -> Authorization {
        if !self.engine
            && let Some(what) = refused(&context.action)
        {
            // Of one that is only looked at, nobody asks why.
            if self.touches.is_none() {
                self.forbidden.get_or_insert(what);
            }
            return Authorization::Deny;
        }
        // Whatever else SQLite might do while it prepares, such as some PRAGMAs, is judged as always.
        if let Some(touches) = &mut self.touches
            && routing::note(touches, &context.action)
        {
            return Authorization::Allow;
        }
        if let AuthAction::Read { table_name, .. } = context.action
            && !self.engine
            && self.touches.is_none()
            && let Some(unreachable) = self.elsewhere.get(table_name)
            && !(unreachable == OnUnreachable::Stale && (self.stale || planted(Bug::StaleUnasked)))
            && !planted(Bug::StrongReadHere)
            && !(planted(Bug::StrongViewHere) && context.accessor.is_some())
        {
            self.refused.get_or_insert_with(|| table_name.to_owned());
            return Authorization::Deny;
        }
        if let AuthAction::Read { table_name, .. } = context.action
            && !self.engine
            && self.touches.is_none()
            && let Some(admission) = routing::of_old(&self.old, table_name)
        {
            self.refused_old.get_or_insert(admission);
            return Authorization::Deny;
        }
        let allowed = match context.action {
            AuthAction::Select
            | AuthAction::Read { .. }
            | AuthAction::Function { .. }
            | AuthAction::Recursive
            | AuthAction::Transaction { .. }
            | AuthAction::Savepoint { .. } => true,
            AuthAction::Pragma { pragma_name, pragma_value } => {
                is_reading_pragma(pragma_name, pragma_value)
            }
            // SQLite asks for these when a table-valued function is first used.
            AuthAction::CreateVtable { module_name, .. } => grants::is_function(module_name),
            _ => false,
        };
        if !allowed {
            return Authorization::Deny;
        }
        let restriction = if self.engine { None } else { self.restriction.as_ref() };
        match restriction.and_then(|restriction| restriction.missing(&context.action)) {
            None => Authorization::Allow,
            Some(missing) => {
                self.missing.get_or_insert(missing);
                Authorization::Deny
            }
        }
    }
}
