//! The figures as tables for people, in Markdown.

use crate::{
    figures::{Figures, Row, SetFigures},
    meter::Cost,
};

/// All tables.
pub(crate) fn render(figures: &Figures) -> String {
    let mut lines = Vec::new();
    for set in &figures.sets {
        lines.extend(render_set(set));
    }
    if !figures.archiving.is_empty() {
        lines.push("\n| archiving | segments/s | CPU s of tool + PostgreSQL + MinIO, for all | segments |".to_owned());
        lines.push("|---|---|---|---|".to_owned());
        lines.extend(figures.archiving.iter().map(|rate| {
            format!(
                "| {} | {:.1} | {} | {} |",
                rate.archiver,
                rate.segments_per_second,
                processor(&rate.cost),
                rate.segments
            )
        }));
    }
    if !figures.loaded.is_empty() {
        lines.push("\n| beside pgbench | transactions/s before | during | kept | backup s | held back by |".to_owned());
        lines.push("|---|---|---|---|---|---|".to_owned());
        lines.extend(figures.loaded.iter().map(|run| {
            format!(
                "| {} | {:.0} | {:.0} | {:.0} % | {:.1} | {} |",
                run.peer,
                run.tps_before,
                run.tps_during,
                100.0 * run.tps_during / run.tps_before,
                run.backup.seconds,
                run.limit
            )
        }));
    }
    lines.push(String::new());
    lines.extend(figures.absent.iter().map(|(name, why)| format!("not measured: {name}: {why}")));
    lines.extend(figures.failures.iter().map(|failure| format!("FAILED: {failure}")));
    lines.join("\n")
}

fn render_set(set: &SetFigures) -> Vec<String> {
    let mut lines = vec![
        format!("\nData \"{}\": {:.0} MB in {} files.\n", set.set, megabytes(set.bytes), set.files),
        "| | backup s | MB/s | CPU s of tool + PostgreSQL + MinIO | peak MB | stored MB | restore s | with sync | MB/s | \
         CPU s | peak MB | checked |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    lines.extend(set.rows.iter().map(|row| render_row(row, set.bytes)));
    lines.push(String::new());
    lines.extend(set.ratios.iter().map(|ratio| {
        format!("pgherd's {} takes {:.2} of the time of {}, {}.", ratio.what, ratio.ratio, ratio.against, ratio.name)
    }));
    lines
}

fn render_row(row: &Row, bytes: u64) -> String {
    let summary = row.summarise();
    let backup = summary.backup.map_or_else(
        || "- | - | - | -".to_owned(),
        |cost| format!("{} | {}", timing(cost.seconds, bytes), usage(&cost)),
    );
    let stored =
        if summary.stored_bytes > 0 { format!("{:.0}", megabytes(summary.stored_bytes)) } else { "-".to_owned() };
    let restore = summary.restore.map_or_else(
        || "- | - | - | - | -".to_owned(),
        |cost| {
            let synced = cost.seconds + summary.sync_seconds.unwrap_or(0.0);
            format!("{:.1} | {} | {}", cost.seconds, timing(synced, bytes), usage(&cost))
        },
    );
    let checked = row.runs.iter().find_map(|run| run.verified.as_deref()).unwrap_or("-");
    format!("| {} | {backup} | {stored} | {restore} | {checked} |", row.name)
}

fn timing(seconds: f64, bytes: u64) -> String {
    format!("{seconds:.1} | {:.0}", megabytes(bytes) / seconds)
}

fn usage(cost: &Cost) -> String {
    format!("{} | {:.0}", processor(cost), megabytes(cost.peak_resident_bytes))
}

fn processor(cost: &Cost) -> String {
    format!("{:.1} + {:.1} + {:.1}", cost.client_cpu_seconds, cost.postgres_cpu_seconds, cost.store_cpu_seconds)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Run;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let cost = Cost { seconds: 2.0, peak_resident_bytes: 40_000_000, ..Cost::default() };
        let run = Run { backup: Some(cost), stored_bytes: 5_000_000, ..Run::default() };
        let restored =
            Run { restore: Some(cost), sync_seconds: Some(1.0), verified: Some("all".into()), ..Run::default() };
        let row = Row { name: "x", runs: vec![run, restored] };
        let set = SetFigures { set: "tables", bytes: 60_000_000, files: 3, rows: vec![row], ratios: Vec::new() };
        let lines = render_set(&set);
        let cells = |line: &String| line.matches('|').count();
        assert_eq!([cells(&lines[1]), cells(&lines[2]), cells(&lines[3])], [13, 13, 13]);
        assert_eq!(
            lines[3],
            "| x | 2.0 | 30 | 0.0 + 0.0 + 0.0 | 40 | 5 | 2.0 | 3.0 | 20 | 0.0 + 0.0 + 0.0 | 40 | all |"
        );
    }
}
