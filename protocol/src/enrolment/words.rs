//! A fingerprint that people can read to each other: eight words of a list of 2048, eleven bits each, 88 bits in all.
//!
//! Whoever wants a TPM with the same words as another must make some 2^88 endorsement keys, and a person compares all eight. The
//! list is `words.txt`: one word a line, in alphabetical order, four to seven small letters, no two alike in their first four.

/// Words in a fingerprint.
pub const COUNT: usize = 8;
/// Bits of a word.
const BITS: usize = 11;

static LIST: &str = include_str!("words.txt");

/// The words of a SHA-256.
#[must_use]
pub fn of(hash: &[u8; 32]) -> [&'static str; COUNT] {
    let mut words = [""; COUNT];
    for (place, word) in words.iter_mut().enumerate() {
        let number = (place * BITS..(place + 1) * BITS).fold(0, |number, bit| {
            let byte = hash.get(bit / 8).copied().unwrap_or_default();
            number << 1 | usize::from(byte >> (7 - bit % 8) & 1)
        });
        *word = LIST.lines().nth(number).unwrap_or_default();
    }
    words
}

/// The same with spaces between.
#[must_use]
pub fn text(hash: &[u8; 32]) -> String {
    of(hash).join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_list_is_what_it_should_be() {
        let list: Vec<&str> = LIST.lines().collect();
        assert_eq!(list.len(), 1 << BITS);
        assert!(list.is_sorted());
        let starts: BTreeSet<&str> = list.iter().map(|word| &word[..4]).collect();
        assert_eq!(starts.len(), list.len());
        for word in list {
            assert!((4..=7).contains(&word.len()), "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
        }
    }

    #[test]
    fn each_of_88_bits_counts() {
        let list: Vec<&str> = LIST.lines().collect();
        assert_eq!(of(&[0; 32]), [list[0]; COUNT]);
        assert_eq!(of(&[0xff; 32]), [list[2047]; COUNT]);
        let mut seen = BTreeSet::new();
        for bit in 0..COUNT * BITS {
            let mut hash = [0; 32];
            hash[bit / 8] = 0x80 >> (bit % 8);
            let words = of(&hash);
            assert_eq!(words[bit / BITS], list[1 << (BITS - 1 - bit % BITS)]);
            seen.insert(words);
        }
        assert_eq!(seen.len(), COUNT * BITS);
    }
}
