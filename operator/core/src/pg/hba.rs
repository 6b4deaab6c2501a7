//! pg_hba.conf, the same on every instance: no entry names a node, so a new replica joins without a change of it.
//!
//! The order carries the safety: the superuser and the replication role are settled before the user's entries come, and
//! the last line rejects whatever no line before it has taken.

use super::quote::quote_hba_field;
use crate::instance::{HbaEntry, REPLICATION_ROLE};

/// Name of the map in pg_ident.conf that lets the instance's operating system user in as a local role.
pub const IDENT_MAP: &str = "pgherd";
/// The bootstrap superuser. It is let in over the unix socket only.
pub const SUPERUSER: &str = "postgres";

/// The local superuser and pgherd's own role: what comes before everything else.
fn render_own() -> String {
    format!(
        "# Written by pgherd at every start; changes are lost. Entries of your own go into postgresql.pgHba.\n\
         # TYPE  DATABASE  USER  ADDRESS  METHOD\n\
         local all all peer map={IDENT_MAP}\n\
         hostssl replication {REPLICATION_ROLE} all cert\n\
         hostssl postgres {REPLICATION_ROLE} all cert\n\
         host all {REPLICATION_ROLE} all reject\n\
         host replication all all reject\n\
         host all {SUPERUSER} all reject\n"
    )
}

/// Renders pg_hba.conf of a primary that lets no client in yet: replicas, pg_rewind and the local superuser may come,
/// everybody else gets an error at once.
#[must_use]
pub fn render_closed_hba() -> String {
    let mut text = render_own();
    text.push_str(
        "# Clients are let in once enough replicas have what this primary had when it started.\nhost all all all reject\n",
    );
    text
}

/// Renders pg_hba.conf with the user's entries (validated before) between pgherd's own and the closing `reject`.
#[must_use]
pub fn render_hba(entries: &[HbaEntry]) -> String {
    let mut text = render_own();
    for entry in entries {
        text.push_str(&format!(
            "hostssl {} {} {} {}\n",
            render_name(&entry.database),
            render_name(&entry.user),
            if entry.address == "all" { "all".to_owned() } else { quote_hba_field(&entry.address) },
            quote_hba_field(&entry.method)
        ));
    }
    text.push_str("hostssl all all all scram-sha-256\nhost all all all reject\n");
    text
}

/// `all` keeps its meaning, every other name is quoted and loses any.
fn render_name(name: &str) -> String {
    if name == "all" { name.to_owned() } else { quote_hba_field(name) }
}

/// Renders pg_ident.conf: the operating system user that runs PostgreSQL may be each of `roles` over the unix socket.
/// (`all` in place of a role is understood from PostgreSQL 16 on only.)
#[must_use]
pub fn render_ident(os_user: &str, roles: &[&str]) -> String {
    let mut text = "# Written by pgherd at every start; changes are lost.\n".to_owned();
    for role in roles {
        text.push_str(&format!("{IDENT_MAP} {} {}\n", quote_hba_field(os_user), quote_hba_field(role)));
    }
    text
}

/// A pg_hba.conf entry that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("postgresql.pgHba[{index}].{field}: {why}; {fix}")]
pub struct HbaError {
    /// The entry's index, from 0.
    pub index: usize,
    /// The field.
    pub field: &'static str,
    /// What is wrong.
    pub why: String,
    /// What to write instead.
    pub fix: String,
}

/// Checks the user's entries.
///
/// # Errors
/// Every entry that is refused.
pub fn validate_hba(entries: &[HbaEntry]) -> Result<(), Vec<HbaError>> {
    let mut errors = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut refuse = |field: &'static str, why: String, fix: &str| {
            errors.push(HbaError { index, field, why, fix: fix.to_owned() });
        };
        for (field, name) in [("database", &entry.database), ("user", &entry.user)] {
            if let Some(why) = why_no_name(name) {
                refuse(field, why, "write all, or the name as it is in PostgreSQL, without quotes");
            }
        }
        if entry.database == "replication" {
            refuse(
                "database",
                "replication is pgherd's own".to_owned(),
                "leave the entry out: replicas join without one",
            );
        }
        if [SUPERUSER, REPLICATION_ROLE].contains(&entry.user.as_str()) {
            refuse("user", format!("{} is not let in by a password", entry.user), "use a role of your own");
        }
        if entry.address != "all" && !is_cidr(&entry.address) {
            refuse(
                "address",
                format!("\"{}\" is no address range", entry.address),
                "write all, 10.0.0.0/8 or fd00::/8",
            );
        }
        if !["scram-sha-256", "cert", "reject"].contains(&entry.method.as_str()) {
            refuse("method", format!("\"{}\" is not allowed", entry.method), "use scram-sha-256, cert or reject");
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Why the text can't stand for a database or role name; None when it can.
fn why_no_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".to_owned());
    }
    if name.len() > 63 {
        return Some("it is longer than 63 bytes".to_owned());
    }
    name.chars().any(|c| c.is_control() || c == '"').then(|| "it holds a quote or a control character".to_owned())
}

/// An IP address with a prefix length.
fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let (Ok(address), Ok(length)) = (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) else {
        return false;
    };
    length <= if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(database: &str, user: &str, address: &str, method: &str) -> HbaEntry {
        let [database, user, address, method] = [database, user, address, method].map(str::to_owned);
        HbaEntry { database, user, address, method }
    }

    #[test]
    fn the_users_entries_stand_between_our_own_and_the_closing_reject() {
        let text = render_hba(&[entry("shop", "all", "10.0.0.0/8", "cert")]);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.first(), Some(&"local all all peer map=pgherd"));
        let user =
            lines.iter().position(|line| *line == "hostssl \"shop\" all \"10.0.0.0/8\" \"cert\"").expect("the entry");
        let superuser =
            lines.iter().position(|line| *line == "host all postgres all reject").expect("the superuser's line");
        assert!(superuser < user);
        assert_eq!(lines.last(), Some(&"host all all all reject"));
        assert!(lines.iter().all(|line| !line.contains("trust") && !line.contains("password")));
    }

    #[test]
    fn while_closed_only_pgherd_itself_comes_in() {
        let open = render_hba(&[entry("shop", "all", "all", "cert")]);
        let closed = render_closed_hba();
        let admitting = closed.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" reject"));
        assert!(admitting.clone().count() == 3 && admitting.clone().all(|line| open.contains(line)));
        assert!(admitting.skip(1).all(|line| line.contains(REPLICATION_ROLE)), "{closed}");
        assert_eq!(closed.lines().last(), Some("host all all all reject"));
    }

    #[test]
    fn an_entry_cannot_smuggle_in_another_line() {
        let text = render_hba(&[entry("a\nhost all all all trust", "b\" \"c", "all", "reject")]);
        assert!(text.lines().all(|line| !line.starts_with("host all all all trust")));
        assert!(validate_hba(&[entry("a\nb", "x", "all", "cert")]).is_err());
    }

    #[test]
    fn trust_and_the_superuser_and_odd_addresses_are_refused() {
        for (bad, field) in [
            (entry("all", "all", "all", "trust"), "method"),
            (entry("all", "postgres", "all", "cert"), "user"),
            (entry("replication", "all", "all", "cert"), "database"),
            (entry("all", "all", "10.0.0.0", "cert"), "address"),
            (entry("all", "all", "10.0.0.0/33", "cert"), "address"),
            (entry("", "all", "all", "cert"), "database"),
        ] {
            let errors = validate_hba(&[bad]).expect_err(field);
            assert_eq!(errors.iter().map(|error| error.field).collect::<Vec<_>>(), [field]);
        }
        assert_eq!(validate_hba(&[entry("shop", "app", "fd00::/8", "scram-sha-256")]), Ok(()));
    }
}
