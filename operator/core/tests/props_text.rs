//! Round trips: positions, histories, and every kind of quoting through a tiny scanner of what PostgreSQL reads.

use pgherd_core::{
    lsn::Lsn,
    pg::quote::{
        quote_conf_value, quote_conninfo_value, quote_hba_field, quote_identifier, quote_literal, render_conninfo,
    },
    quantity::{parse_bytes, parse_duration},
    timeline::{HistoryEntry, Relation, TimelineHistory, TimelineId},
};
use proptest::prelude::*;

/// Text without NUL, which no PostgreSQL value can hold.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,40}", "['\"\\\\\n\r\tab =#]{0,20}", "\\PC{0,20}"]
        .prop_map(|text: String| text.replace('\0', ""))
}

/// Reads a token in `quote`s up to its end, which must be the end of the text. `escape` reads what follows a backslash.
fn scan(token: &str, quote: char, doubled: bool, escape: Option<fn(char) -> char>) -> Option<String> {
    let mut rest = token.strip_prefix(quote)?.chars().peekable();
    let mut value = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\\' if escape.is_some() => value.push(escape?(rest.next()?)),
            c if c == quote && doubled && rest.peek() == Some(&quote) => {
                rest.next();
                value.push(quote);
            }
            c if c == quote => return rest.next().is_none().then_some(value),
            c => value.push(c),
        }
    }
    None
}

fn conf_escape(c: char) -> char {
    match c {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        other => other,
    }
}

fn history() -> impl Strategy<Value = TimelineHistory> {
    prop::collection::btree_map(1_u32..50, 0_u64..1000, 0..6).prop_map(|ancestors| {
        let timeline = TimelineId(ancestors.keys().max().map_or(1, |last| last + 1));
        let entry = |(timeline, lsn)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
        TimelineHistory { timeline, ancestors: ancestors.into_iter().map(entry).collect() }
    })
}

fn mirrored(relation: Relation) -> Relation {
    match relation {
        Relation::Ahead { bytes } => Relation::Behind { bytes },
        Relation::Behind { bytes } => Relation::Ahead { bytes },
        same => same,
    }
}

proptest! {
    #[test]
    fn an_lsn_is_read_as_it_was_written(lsn in any::<u64>()) {
        prop_assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
    }

    #[test]
    fn no_text_makes_the_lsn_parser_fail_otherwise_than_by_an_error(text in "\\PC{0,20}") {
        if let Ok(lsn) = text.parse::<Lsn>() {
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
    }

    #[test]
    fn a_history_is_read_as_it_was_written(history in history()) {
        prop_assert_eq!(TimelineHistory::parse(history.timeline, &history.render()), Ok(history));
    }

    #[test]
    fn no_text_makes_the_history_parser_fail_otherwise_than_by_an_error(
        text in "([0-9]{0,12}[\t ]{0,2}[0-9A-Fx]{0,10}/?[0-9A-F]{0,10}[\t ]?[a-z# ]{0,9}\n?){0,6}|\\PC{0,60}", timeline: u32,
    ) {
        if let Ok(history) = TimelineHistory::parse(TimelineId(timeline), &text) {
            prop_assert_eq!(TimelineHistory::parse(TimelineId(timeline), &history.render()), Ok(history));
        }
    }

    #[test]
    fn two_points_lie_to_each_other_as_in_a_mirror(a in history(), b in history(), x in 0_u64..1000, y in 0_u64..1000) {
        let there = a.compare(Lsn(x), &b, Lsn(y));
        prop_assert_eq!(mirrored(there), b.compare(Lsn(y), &a, Lsn(x)));
        if matches!(there, Relation::Behind { .. } | Relation::Same) {
            prop_assert!(b.contains(a.timeline, Lsn(x)));
        }
        prop_assert_eq!(a.compare(Lsn(x), &a, Lsn(x)), Relation::Same);
    }

    #[test]
    fn identifiers_survive_quoting(text in text()) {
        prop_assert_eq!(scan(&quote_identifier(&text), '"', true, None), Some(text));
    }

    #[test]
    fn literals_survive_quoting(text in text()) {
        let quoted = quote_literal(&text);
        let read = match quoted.strip_prefix(" E") {
            Some(escaped) => scan(escaped, '\'', true, Some(|c| c)),
            None => scan(&quoted, '\'', true, None),
        };
        prop_assert_eq!(read, Some(text));
    }

    #[test]
    fn configuration_values_survive_quoting_and_stay_on_one_line(text in text()) {
        let quoted = quote_conf_value(&text);
        prop_assert!(!quoted.contains(['\n', '\r']));
        prop_assert_eq!(scan(&quoted, '\'', true, Some(conf_escape)), Some(text));
    }

    #[test]
    fn connection_string_values_survive_quoting(text in text()) {
        prop_assert_eq!(scan(&quote_conninfo_value(&text), '\'', false, Some(|c| c)), Some(text));
    }

    #[test]
    fn hba_fields_survive_quoting_but_for_line_breaks(text in text()) {
        let kept: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        prop_assert_eq!(scan(&quote_hba_field(&text), '"', true, None), Some(kept));
    }

    #[test]
    fn sizes_and_durations_never_panic(text in "[0-9.eEKMGTPinumkshdw+-]{0,24}") {
        let _ = (parse_bytes(&text), parse_duration(&text));
    }

    #[test]
    fn a_size_is_counted_exactly(count in 0_u64..1_000_000) {
        prop_assert_eq!(parse_bytes(&format!("{count}Mi")), Ok(count << 20));
        prop_assert_eq!(parse_bytes(&format!("{count}.5Gi")), Ok((count << 30) + (1 << 29)));
    }
}

#[test]
fn a_connection_string_is_a_row_of_quoted_pairs() {
    assert_eq!(render_conninfo(&[("host", "a b"), ("user", "it's")]), r"host='a b' user='it\'s'");
}
