//! What the machine's screen shows, read without knowing its font.
//!
//! A text console draws each character into a cell of 8 by 16 pixels (the kernel's VGA8x16 font, the firmware's own too). A
//! text stands somewhere if there is a row of cells in which the same letters look the same, different letters look
//! different, and spaces are empty. A word of the same pattern (`gone` for `done`) would do as well, so what is looked for is a
//! text with repetitions, of a dozen letters or more: no other that the machine shows has its pattern.

use std::collections::HashMap;
use std::path::Path;

use crate::Error;

const CELL_WIDTH: usize = 8;
const CELL_HEIGHT: usize = 16;
/// Bytes of a pixel: red, green, blue.
const PIXEL: usize = 3;

/// A picture of the screen.
pub struct Screen {
    /// What each cell looks like, row by row: cells that look the same have the same number. 0 is an empty one.
    rows: Vec<Vec<usize>>,
}

impl Screen {
    /// Reads a picture that QEMU wrote in the PPM format (P6, 8 bits a colour).
    ///
    /// # Errors
    /// [`Error::File`] if the file is not there or is no such picture.
    pub fn read(path: &Path) -> Result<Screen, Error> {
        let error = |source| Error::File {
            operation: "reading the picture",
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::read(path).map_err(error)?;
        Screen::parse(&bytes)
            .ok_or_else(|| error(std::io::Error::other("it is no picture in the PPM format")))
    }

    fn parse(bytes: &[u8]) -> Option<Screen> {
        let mut rest = bytes;
        let mut word = || -> Option<&str> {
            let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
            let length = rest
                .get(start..)?
                .iter()
                .position(u8::is_ascii_whitespace)?;
            let word = rest.get(start..start + length)?;
            // One white space ends the head; the pixels begin after it.
            rest = rest.get(start + length + 1..)?;
            std::str::from_utf8(word).ok()
        };
        if word()? != "P6" {
            return None;
        }
        let width: usize = word()?.parse().ok()?;
        let height: usize = word()?.parse().ok()?;
        if word()? != "255" || rest.len() < width.checked_mul(height)?.checked_mul(PIXEL)? {
            return None;
        }
        let mut looks: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut rows = Vec::new();
        for top in (0..height / CELL_HEIGHT).map(|row| row * CELL_HEIGHT) {
            let mut row = Vec::new();
            for left in (0..width / CELL_WIDTH).map(|column| column * CELL_WIDTH) {
                let look: Vec<u8> = (top..top + CELL_HEIGHT)
                    .flat_map(|y| {
                        let start = (y * width + left) * PIXEL;
                        rest[start..start + CELL_WIDTH * PIXEL].iter().copied()
                    })
                    .collect();
                let is_empty = look.chunks(PIXEL).all(|pixel| pixel == &look[..PIXEL]);
                let next = looks.len() + 1;
                row.push(if is_empty {
                    0
                } else {
                    *looks.entry(look).or_insert(next)
                });
            }
            rows.push(row);
        }
        Some(Screen { rows })
    }

    /// Whether a text stands in one of its rows.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        !letters.is_empty()
            && self.rows.iter().any(|row| {
                row.windows(letters.len())
                    .any(|cells| is_written(&letters, cells))
            })
    }
}

/// Whether cells may be letters: one look a letter, one letter a look.
fn is_written(letters: &[char], cells: &[usize]) -> bool {
    let mut looks: HashMap<char, usize> = HashMap::from([(' ', 0)]);
    let mut meant: HashMap<usize, char> = HashMap::from([(0, ' ')]);
    letters.iter().zip(cells).all(|(letter, cell)| {
        *looks.entry(*letter).or_insert(*cell) == *cell
            && *meant.entry(*cell).or_insert(*letter) == *letter
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with a text in its second row; a letter is drawn as the bits of its code.
    fn picture(text: &str) -> Vec<u8> {
        let (width, height) = (40 * CELL_WIDTH, 3 * CELL_HEIGHT);
        let mut pixels = vec![0; width * height * PIXEL];
        for (column, letter) in text
            .bytes()
            .enumerate()
            .filter(|(_, letter)| *letter != b' ')
        {
            for bit in (0..8).filter(|bit| letter >> bit & 1 == 1) {
                let at = ((CELL_HEIGHT + 4) * width + column * CELL_WIDTH + bit) * PIXEL;
                pixels[at..at + PIXEL].fill(0xaa);
            }
        }
        let mut bytes = format!("P6\n{width} {height}\n255\n").into_bytes();
        bytes.extend(pixels);
        bytes
    }

    #[test]
    fn finds_what_is_written_and_nothing_else() {
        let screen = Screen::parse(&picture("  installer: done, remove the stick")).unwrap();
        for there in ["installer: done", "remove the stick", "done, remove"] {
            assert!(screen.shows(there), "{there}");
        }
        for not_there in [
            "installed: done",
            "remove the brick",
            "installing to nvme0n1",
            "",
        ] {
            assert!(!screen.shows(not_there), "{not_there}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bytes in [
            &b""[..],
            b"P6",
            b"P6\n8 16\n255\n",
            b"P5\n1 1\n255\n0",
            b"P6\n99999999999 99999999999\n255\n",
        ] {
            assert!(Screen::parse(bytes).is_none());
        }
    }
}
