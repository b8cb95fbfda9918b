//! What no statement of a client may do on any connection, whatever is granted.

use rusqlite::{ffi, hooks::AuthAction};

use crate::schema::functions;

/// What is refused to everybody, in words.
pub(super) fn refused(action: &AuthAction<'_>) -> Option<String> {
    match *action {
        AuthAction::Function { function_name } => functions::refused(function_name),
        // Of a name that is an argument SQLite does not tell.
        AuthAction::Attach { .. } | AuthAction::Unknown { code: ffi::SQLITE_ATTACH, .. } => {
            Some("ATTACH or VACUUM".to_owned())
        }
        AuthAction::Detach { .. } | AuthAction::Unknown { code: ffi::SQLITE_DETACH, .. } => {
            Some("DETACH".to_owned())
        }
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let hint = match pragma_name {
                "optimize" => " (run ANALYZE instead)",
                _ => "",
            };
            let allowed = is_reading_pragma(pragma_name, pragma_value) || is_idle(pragma_name);
            (!allowed).then(|| format!("PRAGMA {pragma_name}{hint}"))
        }
        _ => None,
    }
}

/// Whether a PRAGMA does nothing within a transaction that outlives it; migrations say these.
pub(super) fn is_idle(pragma: &str) -> bool {
    ["foreign_keys", "defer_foreign_keys"].iter().any(|idle| pragma.eq_ignore_ascii_case(idle))
}

/// Whether a PRAGMA only tells something, in the form it is used.
pub(crate) fn is_reading_pragma(name: &str, value: Option<&str>) -> bool {
    const WITH_ARGUMENT: [&str; 11] = [
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
        "data_version",
    ];
    const ALONE: [&str; 15] = [
        "application_id",
        "collation_list",
        "compile_options",
        "database_list",
        "encoding",
        "foreign_keys",
        "freelist_count",
        "function_list",
        "journal_mode",
        "module_list",
        "page_count",
        "page_size",
        "pragma_list",
        "schema_version",
        "user_version",
    ];
    let name = name.to_ascii_lowercase();
    WITH_ARGUMENT.contains(&name.as_str()) || (value.is_none() && ALONE.contains(&name.as_str()))
}
