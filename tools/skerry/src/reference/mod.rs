//! Reference pages in Markdown, written from what the program knows of itself.

pub mod api;
pub mod commands;

/// Stands at the top of each page.
const GENERATED: &str = "<!-- Written by `skerry docs`; do not change by hand. -->";

/// Text for a cell of a table: one line, and nothing that Markdown would take for its own.
fn cell(text: &str) -> String {
    let mut out = String::new();
    let mut code = false;
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word.chars() {
            match c {
                '`' => code = !code,
                '|' => out.push('\\'),
                '<' | '*' | '_' | '[' if !code => out.push('\\'),
                _ => {}
            }
            out.push(c);
        }
    }
    out
}

/// A table; none if there are no rows.
fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(titles.iter().map(|title| (*title).to_owned()).collect());
    out += &line(titles.iter().map(|_| "---".to_owned()).collect());
    for row in rows {
        out += &line(row.clone());
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_no_markdown_by_accident() {
        assert_eq!(
            cell("a\n  b | `x|<y>_` <z> c_d"),
            "a b \\| `x\\|<y>_` \\<z> c\\_d"
        );
        assert_eq!(
            table(&["A", "B"], &[vec!["1".into(), "2".into()]]),
            "| A | B |\n| --- | --- |\n| 1 | 2 |\n\n"
        );
        assert_eq!(table(&["A"], &[]), "");
    }
}
