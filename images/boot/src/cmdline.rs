//! What the image build wrote on the kernel's command line: which root file system belongs to this kernel.

use imaging::parts::RootHash;

use crate::Error;

/// `roothash=` and `verityoffset=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootArguments {
    /// Root of the hash tree.
    pub root_hash: RootHash,
    /// Byte of the partition at which the verity superblock begins.
    pub verity_offset: u64,
}

/// Reads them from the text of `/proc/cmdline`. An argument given twice is refused: nobody should have to guess which of
/// them counts.
pub fn parse(cmdline: &str) -> Result<RootArguments, Error> {
    let hash = single(cmdline, "roothash")?;
    let offset = single(cmdline, "verityoffset")?;
    let root_hash = hash
        .parse()
        .map_err(|e| Error::CommandLine(format!("has a roothash= that is none: {e}")))?;
    let verity_offset = offset
        .parse()
        .ok()
        .filter(|n: &u64| *n > 0 && n.is_multiple_of(512))
        .ok_or_else(|| {
            Error::CommandLine(format!(
                "has a verityoffset= of '{offset}', which is not a multiple of 512"
            ))
        })?;
    Ok(RootArguments {
        root_hash,
        verity_offset,
    })
}

fn single<'a>(cmdline: &'a str, name: &str) -> Result<&'a str, Error> {
    let mut found = cmdline.split_ascii_whitespace().filter_map(|word| {
        word.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
    });
    match (found.next(), found.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(Error::CommandLine(format!("lacks {name}="))),
        (Some(_), Some(_)) => Err(Error::CommandLine(format!("has {name}= more than once"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let hash = "ab".repeat(32);
        let good = parse(&format!(
            "quiet roothash={hash} console=ttyS0 verityoffset=4096\n"
        ))
        .unwrap();
        assert_eq!(
            good,
            RootArguments {
                root_hash: hash.parse().unwrap(),
                verity_offset: 4096
            }
        );
        for (text, reason) in [
            (String::new(), "lacks roothash="),
            (format!("roothash={hash}"), "lacks verityoffset="),
            (
                format!("roothash={hash} roothash={hash} verityoffset=4096"),
                "more than once",
            ),
            (
                format!("xroothash={hash} verityoffset=4096"),
                "lacks roothash=",
            ),
            ("roothash=abcd verityoffset=4096".to_owned(), "is none"),
            (
                format!("roothash={hash} verityoffset=-1"),
                "multiple of 512",
            ),
            (format!("roothash={hash} verityoffset=0"), "multiple of 512"),
            (
                format!("roothash={hash} verityoffset=99999999999999999999999"),
                "multiple of 512",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
