//! Holds what a report directory has against a table of goals, `docs/goals.md`. This does not measure
//! anything.
//!
//! ```text
//!   | goal | bound           | figure                                                        |
//!   | any  | at least 1.5    | `FILE{FIELD=VALUE; FIELD~PART}.FIELD`                         |
//!   |      | at most 748 MiB | `FILE{...}.FIELD / FILE{...}.FIELD`, or their difference by - |
//!   |      | published       | `worst ` before it: one figure, not all                       |
//! ```
//!
//! FILE is JSON of the directory, or what `fill` has noted, of whose first run the last line counts; a `*` in
//! its name stands for anything. The figures are FIELDs, with dots between the names, of all objects in it
//! whose own fields have these values. Two lists are paired in order; one figure goes with all of the other
//! list. A goal that no file has figures for is "not measured", never omitted.

use crate::summary::table;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::fs;
use std::path::Path;

const MIB: f64 = (1_u64 << 20) as f64;

/// The goals, in order, and where they stand.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// A goal.
#[derive(Debug, Serialize)]
struct Row {
    goal: String,
    bound: String,
    measured: Vec<f64>,
    /// For each figure; "not measured" if there is none.
    verdicts: Vec<&'static str>,
}

/// Which figures are good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// No goal: shown because it is asked for.
    Published,
}

/// Reads the table `goals`, and judges what `dir` has.
pub(crate) fn run(goals: &Path, dir: &Path) -> Result<Report> {
    let text = fs::read_to_string(goals).with_context(|| format!("cannot read {}", goals.display()))?;
    let goals = table_of(&text)
        .map(|[goal, bound, figure]| row(dir, goal, bound, figure).with_context(|| format!("goal '{goal}'")));
    Ok(Report { rows: goals.collect::<Result<_>>()? })
}

/// The rows of a Markdown table of three columns, without its head.
fn table_of(text: &str) -> impl Iterator<Item = [&str; 3]> {
    let rows = text.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
    rows.filter_map(|row| row.split('|').map(str::trim).collect::<Vec<_>>().try_into().ok()).skip(2)
}

fn row(dir: &Path, goal: &str, bound: &str, figure: &str) -> Result<Row> {
    let (limit, unit) = parse_bound(bound)?;
    let (is_worst, figure) = match figure.trim_matches('`').strip_prefix("worst ") {
        Some(figure) => (true, figure),
        None => (false, figure.trim_matches('`')),
    };
    let scale = if unit == "MiB" { MIB } else { 1.0 };
    let mut measured: Vec<f64> = figures(dir, figure)?.into_iter().map(|figure| figure / scale).collect();
    if is_worst {
        measured.sort_by(f64::total_cmp);
        if let Bound::AtMost(_) = limit {
            measured.reverse();
        }
        measured.truncate(1);
    }
    let mut verdicts: Vec<_> = measured.iter().map(|figure| limit.verdict(*figure)).collect();
    if verdicts.is_empty() {
        verdicts.push("not measured");
    }
    Ok(Row { goal: goal.to_owned(), bound: bound.to_owned(), measured, verdicts })
}

/// A bound and its unit.
fn parse_bound(text: &str) -> Result<(Bound, &str)> {
    if text == "published" {
        return Ok((Bound::Published, ""));
    }
    let expected = || format!("expected 'at least N', 'at most N' or 'published', found '{text}'");
    let (limit, rest): (fn(f64) -> Bound, _) =
        match (text.strip_prefix("at least "), text.strip_prefix("at most ")) {
            (Some(rest), _) => (Bound::AtLeast, rest),
            (_, Some(rest)) => (Bound::AtMost, rest),
            _ => anyhow::bail!(expected()),
        };
    let (number, unit) = rest.split_once(' ').unwrap_or((rest, ""));
    Ok((limit(number.parse().with_context(expected)?), unit))
}

/// The figures of one selection, or of two.
fn figures(dir: &Path, text: &str) -> Result<Vec<f64>> {
    let (one, other, combined): (_, _, fn(f64, f64) -> f64) =
        match (text.split_once(" / "), text.split_once(" - ")) {
            (Some((one, other)), _) => (one, other, |one, other| one / other),
            (_, Some((one, other))) => (one, other, |one, other| one - other),
            _ => return select(dir, text),
        };
    let (one, other) = (select(dir, one)?, select(dir, other)?);
    let is_paired = one.is_empty() || other.len() <= 1 || one.len() == other.len();
    ensure!(is_paired, "expected as many figures on both sides, found {} and {}", one.len(), other.len());
    Ok(one.into_iter().zip(other.into_iter().cycle()).map(|(one, other)| combined(one, other)).collect())
}

/// The figures that `FILE{CONDITIONS}.FIELD` names, those of each file in the order in which it has them.
fn select(dir: &Path, selection: &str) -> Result<Vec<f64>> {
    let parts = selection.split_once('{').and_then(|(file, rest)| Some((file, rest.split_once("}.")?)));
    let (file, (conditions, field)) =
        parts.with_context(|| format!("expected FILE{{CONDITIONS}}.FIELD, found '{selection}'"))?;
    let (begin, end) = file.split_once('*').unwrap_or((file, ""));
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name == file || (file != begin && name.starts_with(begin) && name.ends_with(end)))
        .collect();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let text = fs::read_to_string(dir.join(&name)).with_context(|| format!("cannot read {name}"))?;
        let values = serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<Vec<Value>, _>>();
        let values = values.with_context(|| format!("{name}: expected JSON"))?;
        if let Some(last) = crate::fill::of_first_kind(values).last() {
            search(last, conditions, field, &mut found);
        }
    }
    Ok(found)
}

/// Adds the figures of an object, and of all within it, to those found.
fn search(value: &Value, conditions: &str, field: &str, found: &mut Vec<f64>) {
    let holds = |condition: &str| match condition.split_once(['=', '~']) {
        Some((name, part)) if condition[name.len()..].starts_with('~') => {
            at(value, name).as_str().is_some_and(|text| text.contains(part))
        }
        Some((name, wanted)) => match at(value, name) {
            Value::String(text) => text == wanted,
            other => wanted.parse().is_ok_and(|wanted: Value| *other == wanted),
        },
        None => condition.is_empty(),
    };
    if conditions.split(';').all(|condition| holds(condition.trim())) {
        found.extend(at(value, field).as_f64());
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| search(value, conditions, field, found)),
        Value::Object(fields) => fields.values().for_each(|value| search(value, conditions, field, found)),
        _ => (),
    }
}

/// A field by names with dots between them; `Null` if there is none.
fn at<'a>(value: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(value, |value, name| &value[name])
}

impl Bound {
    fn verdict(self, figure: f64) -> &'static str {
        match self {
            Self::AtLeast(bound) if figure >= bound => "met",
            Self::AtMost(bound) if figure <= bound => "met",
            Self::Published => "published",
            Self::AtLeast(_) | Self::AtMost(_) => "short",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut goals = table(&["goal", "bound", "measured", "met?"]);
        for Row { goal, bound, measured, verdicts } in &self.rows {
            let told = |figure: &f64| match figure.abs() {
                100.0.. => format!("{figure:.0}"),
                _ => format!("{figure:.2}"),
            };
            let measured: Vec<String> = measured.iter().map(told).collect();
            // One word if all agree.
            let is_one = verdicts.iter().all(|verdict| verdict == &verdicts[0]);
            let verdicts = if is_one { verdicts[0].to_owned() } else { verdicts.join(" / ") };
            goals.add_row([goal.clone(), bound.clone(), measured.join(" / "), verdicts]);
        }
        let count =
            |word| self.rows.iter().flat_map(|row| &row.verdicts).filter(|verdict| **verdict == word).count();
        let (met, short, missing) = (count("met"), count("short"), count("not measured"));
        write!(f, "{goals}\n\n{met} figures met, {short} short, {missing} not measured.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(files: &[(&str, Value)], bound: &str, figure: &str) -> (Vec<f64>, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        let row = row(dir.path(), "a goal", bound, figure).unwrap();
        (row.measured, row.verdicts.join(" / "))
    }

    #[test]
    fn figures_are_selected_by_what_stands_beside_them_and_each_is_judged() {
        let row = |name: &str, mode: &str, ratio: f64| json!({"name": name, "mode": mode, "ratio": {"median": ratio}});
        let file = [(
            "a.json",
            json!({"rows": [row("x, 1", "on", 1.5), row("x, 1", "off", 0.5), row("y", "on", 9.0)]}),
        )];
        let ratio =
            |bound, conditions: &str| judged(&file, bound, &format!("`a.json{{{conditions}}}.ratio.median`"));
        assert_eq!(ratio("at least 1", "name=x, 1"), (vec![1.5, 0.5], "met / short".to_owned()));
        assert_eq!(ratio("at most 1", "name=x, 1; mode=off"), (vec![0.5], "met".to_owned()));
        assert_eq!(ratio("published", "name~x"), (vec![1.5, 0.5], "published / published".to_owned()));
        assert_eq!(ratio("at least 1", "name=z"), (vec![], "not measured".to_owned()));
        assert_eq!(
            judged(&file, "at most 2", "worst a.json{}.ratio.median"),
            (vec![9.0], "short".to_owned())
        );
        assert_eq!(
            judged(&file, "at least 1", "worst a.json{}.ratio.median"),
            (vec![0.5], "short".to_owned())
        );
    }

    #[test]
    fn two_selections_are_paired_and_files_of_several_sizes_are_all_taken() {
        let files = [
            ("one-1T.json", json!({"peak": 300 << 20, "blocks": 100 << 20})),
            ("one-2T.json", json!({"peak": 600 << 20, "blocks": 200 << 20})),
            ("unit.json", json!({"bytes": 2 << 20})),
        ];
        let of = |bound, figure| judged(&files, bound, figure);
        let difference = of("at most 250 MiB", "one-*.json{}.peak - one-*.json{}.blocks");
        assert_eq!(difference, (vec![200.0, 400.0], "met / short".to_owned()));
        assert_eq!(of("at least 200", "one-*.json{}.peak / unit.json{}.bytes").0, [150.0, 300.0]);
        assert_eq!(of("at least 200", "one-*.json{}.peak / no.json{}.bytes").1, "not measured");
    }

    #[test]
    fn every_goal_of_the_document_can_be_read_and_names_workloads_that_there_are() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/goals.md");
        let report = run(&path, tempfile::tempdir().unwrap().path()).unwrap();
        assert!(report.rows.len() > 30 && report.to_string().contains(" 0 short,"));
        let text = fs::read_to_string(path).unwrap();
        for rest in text.split("workload=").skip(1) {
            let name = rest.split([';', '}']).next().unwrap();
            assert!(crate::sessions::workloads().any(|workload| workload.name == name), "{name}");
        }
    }
}
