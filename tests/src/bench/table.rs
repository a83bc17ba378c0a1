//! Samples and the table they end in.
//!
//! Invariant: every figure says its unit and which direction is good; a ratio above 1 always means "ours is better".

use std::collections::BTreeMap;
use std::fmt::Write;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Speed.
    Higher,
    /// Time, bytes, memory.
    Lower,
}

#[derive(Debug)]
struct Row {
    unit: &'static str,
    better: Better,
    values: BTreeMap<&'static str, Vec<f64>>,
}

/// Every value measured, by what was measured and of whom, in the order first seen.
#[derive(Debug, Default)]
pub struct Samples {
    order: Vec<String>,
    rows: BTreeMap<String, Row>,
}

impl Samples {
    /// Adds one value.
    pub fn add(
        &mut self,
        what: &str,
        unit: &'static str,
        better: Better,
        subject: &'static str,
        value: f64,
    ) {
        if !self.rows.contains_key(what) {
            self.order.push(what.to_owned());
        }
        let row = self.rows.entry(what.to_owned()).or_insert_with(|| Row {
            unit,
            better,
            values: BTreeMap::new(),
        });
        row.values.entry(subject).or_default().push(value);
    }

    /// A markdown table: one column for each subject, then ours over each peer.
    pub fn markdown(&self, subjects: &[&'static str], ours: &'static str) -> String {
        let peers: Vec<_> = subjects.iter().filter(|name| **name != ours).collect();
        let has_ours = subjects.contains(&ours);
        let mut out = String::from("| what | unit |");
        for name in subjects {
            let _ = write!(out, " {name} |");
        }
        for peer in peers.iter().filter(|_| has_ours) {
            let _ = write!(out, " × {peer} |");
        }
        let columns = 2 + subjects.len() + if has_ours { peers.len() } else { 0 };
        let _ = write!(out, "\n|---|---|{}\n", "--:|".repeat(columns - 2));
        for what in &self.order {
            let row = &self.rows[what];
            let value = |name: &str| row.values.get(name).map(|values| median(values));
            let _ = write!(out, "| {what} | {} |", row.unit);
            for name in subjects {
                let _ = write!(out, " {} |", value(name).map_or("".into(), figure));
            }
            for peer in peers.iter().filter(|_| has_ours) {
                let ratio = value(ours).zip(value(peer)).map(|(a, b)| match row.better {
                    Better::Higher => a / b,
                    Better::Lower => b / a,
                });
                let _ = write!(
                    out,
                    " {} |",
                    ratio
                        .filter(|r| r.is_finite())
                        .map_or("".into(), |r| format!("{r:.2}"))
                );
            }
            out.push('\n');
        }
        out
    }
}

/// The middle one; of an even number the mean of the two.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// Three significant digits, without an exponent.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_point_the_right_way() {
        let mut samples = Samples::default();
        for value in [10.0, 30.0, 20.0] {
            samples.add("write", "MB/s", Better::Higher, "ours", value);
        }
        samples.add("write", "MB/s", Better::Higher, "peer", 10.0);
        samples.add("walk", "s", Better::Lower, "ours", 1.0);
        samples.add("walk", "s", Better::Lower, "peer", 4.0);
        samples.add("memory", "MiB", Better::Lower, "ours", 300.0);
        let table = samples.markdown(&["ours", "peer"], "ours");
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows[0], "| what | unit | ours | peer | × peer |");
        assert_eq!(rows[2], "| write | MB/s | 20.0 | 10.0 | 2.00 |");
        assert_eq!(rows[3], "| walk | s | 1.00 | 4.00 | 4.00 |");
        assert_eq!(rows[4], "| memory | MiB | 300 |  |  |");
    }
}
