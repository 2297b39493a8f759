//! Tables: columns as wide as their widest cell, three spaces between them, no lines.

use crate::output::harmless;
use crate::terminal::{Paint, paint};

/// A table that is written at once, or row by row while watching.
pub struct Table {
    widths: Vec<usize>,
    colours: bool,
}

impl Table {
    /// A table whose columns fit `rows`; the first row is the titles'.
    pub fn fitting(rows: &[Vec<String>], colours: bool) -> Self {
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        Self {
            widths: (0..columns)
                .map(|column| width(column).unwrap_or_default())
                .collect(),
            colours,
        }
    }

    /// One row as a line. `colour` says which colour a cell has, by its column.
    pub fn row(&self, cells: &[String], colour: impl Fn(usize) -> Paint) -> String {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let cell = harmless(cell);
            let size = cell.chars().count();
            line.push_str(&if self.colours {
                paint(&cell, colour(column))
            } else {
                cell
            });
            if column + 1 < cells.len() {
                let width = self
                    .widths
                    .get(column)
                    .copied()
                    .unwrap_or_default()
                    .max(size);
                line.extend(std::iter::repeat_n(' ', width - size + 3));
            }
        }
        line.truncate(line.trim_end_matches(' ').len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            row(&["NAME", "PHASE", "AGE"]),
            row(&["a-long-name", "", "5s"]),
            row(&["b", "Running", ""]),
        ];
        let table = Table::fitting(&rows, false);
        let lines: Vec<_> = rows
            .iter()
            .map(|cells| table.row(cells, |_| Paint::Green))
            .collect();
        assert_eq!(
            lines,
            [
                "NAME          PHASE     AGE",
                "a-long-name             5s",
                "b             Running"
            ]
        );
    }

    #[test]
    fn later_rows_may_be_wider_and_coloured() {
        let table = Table::fitting(&[row(&["N", "P"])], true);
        let line = table.row(&row(&["longer", "Running"]), |column| {
            if column == 1 {
                Paint::Green
            } else {
                Paint::Plain
            }
        });
        assert_eq!(line, "longer   \x1b[32mRunning\x1b[0m");
    }
}
