//! Quoting for what PostgreSQL parses: identifiers, literals, configuration values and connection strings. Every value
//! that comes from a user passes through here, so that no quote or newline can end it early.

/// `"name"` with double quotes doubled. NUL can't occur in an identifier and is dropped.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
}

/// `'text'`, or ` E'text'` where backslashes occur, as `PQescapeLiteral` does it: right with any
/// `standard_conforming_strings`. NUL can't occur and is dropped.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\0', "").replace('\'', "''");
    if doubled.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// A value of postgresql.conf: in single quotes, with quotes doubled and backslashes and control characters escaped as
/// `DeescapeQuotedString` reads them back. NUL can't occur and is dropped.
#[must_use]
pub fn quote_conf_value(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\0' => {}
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// A value of a `keyword=value` connection string: in single quotes, with quotes and backslashes escaped.
#[must_use]
pub fn quote_conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\0', "").replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A field of pg_hba.conf in double quotes. A quoted keyword (`"all"`) loses its meaning, which is intended. A line
/// break would end the entry and is dropped, NUL as well; a double quote is doubled.
#[must_use]
pub fn quote_hba_field(field: &str) -> String {
    let kept: String = field.chars().filter(|c| !matches!(c, '\0' | '\n' | '\r')).collect();
    format!("\"{}\"", kept.replace('"', "\"\""))
}

/// `key='value' key='value'`, in the order given.
#[must_use]
pub fn render_conninfo(pairs: &[(&str, &str)]) -> String {
    let rendered: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{key}={}", quote_conninfo_value(value))).collect();
    rendered.join(" ")
}
