//! Times as people read them: UTC as in RFC 3339, and how long ago that is. JSON has milliseconds since 1970.

use serde_json::Value;
use time::OffsetDateTime;

/// A time of a node, in milliseconds since 1970, as seen from the node's `status`.
pub(super) fn shown(ms: &Value, status: &Value) -> Option<String> {
    let (ms, now) = (ms.as_i64()?, status["clock"]["wall_ms"].as_i64()?);
    Some(format!("{} ({})", rfc3339(ms)?, ago(now.saturating_sub(ms))))
}

/// `None` if it is beyond the years that have four digits.
fn rfc3339(ms: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    (0..=9999).contains(&at.year()).then(|| {
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        )
    })
}

/// A time that is so many milliseconds back, to the largest unit of which there are two.
fn ago(ms: i64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(24 * 60 * 60 * 1000, "days"), (60 * 60 * 1000, "h"), (60 * 1000, "min"), (1000, "s")];
    let length = ms.unsigned_abs();
    let unit = UNITS.iter().find(|(unit, _)| length >= 2 * unit);
    let length = match unit {
        Some((unit, name)) => format!("{} {name}", length / unit),
        None => format!("{length} ms"),
    };
    if ms < 0 { format!("in {length}") } else { format!("{length} ago") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_told_as_people_read_them() {
        let status = json!({ "clock": { "wall_ms": 1_795_909_267_123_i64 } });
        let shown = |ms: i64| shown(&json!(ms), &status);
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(shown(1_795_909_265_122), at("2026-11-28T23:41:05.122Z (2 s ago)"));
        assert_eq!(shown(1_795_909_266_123), at("2026-11-28T23:41:06.123Z (1000 ms ago)"));
        assert_eq!(shown(1_795_909_147_123), at("2026-11-28T23:39:07.123Z (2 min ago)"));
        assert_eq!(shown(1_795_822_867_123), at("2026-11-27T23:41:07.123Z (24 h ago)"));
        assert_eq!(shown(0), at("1970-01-01T00:00:00.000Z (20785 days ago)"));
        assert_eq!(shown(1_795_909_277_123), at("2026-11-28T23:41:17.123Z (in 10 s)"));
        assert_eq!(shown(i64::MAX), None);
        assert_eq!(super::shown(&Value::Null, &status), None);
    }
}
