//! Reads a tar archive one member at a time: ustar, GNU's long names and sparse files, POSIX's extended headers.
//!
//! The headers are the tar crate's; the way from one to the next is our own. What stands before a member in extension
//! headers has to be kept in memory until the member comes, and the crate takes it whole: a few KiB of gzip can claim
//! gigabytes of it. Here an extension has at most [`EXTENSION_LIMIT`] bytes and a sparse file at most [`PIECES_LIMIT`]
//! pieces; an archive with more is refused before anything is read of it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

/// Most bytes of one extension header: 64 KiB. A path has at most 4 KiB, a capability 20 bytes.
pub const EXTENSION_LIMIT: u64 = 64 * 1024;

/// Most pieces of a sparse file.
pub const PIECES_LIMIT: usize = 4096;

/// The unit of an archive, in bytes.
const BLOCK: u64 = 512;

/// An archive that is being read.
pub struct Archive<R> {
    reader: R,
    /// Bytes of the current member that were not read yet, and what fills up its last block.
    left: u64,
    padding: u64,
    before: Extensions,
}

/// What was said of a member before it came.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Extensions {
    fn any(&self) -> bool {
        self.name.is_some() || self.link.is_some() || self.pax.is_some()
    }

    /// A number of the extended header; the last one of a name counts (POSIX, pax).
    fn number(&self, name: &str) -> io::Result<Option<u64>> {
        let mut found = None;
        for record in Records(self.pax.as_deref().unwrap_or_default()) {
            let (key, value) = record?;
            if key == name.as_bytes() {
                let number = std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok());
                found = Some(number.ok_or_else(|| {
                    wrong(format!("an extended header's {name} is not a number"))
                })?);
            }
        }
        Ok(found)
    }
}

/// The records of an extended header, name and value: `LENGTH NAME=VALUE\n`, where the length counts the whole record. A
/// value may hold any byte, line feeds too.
pub struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let all = std::mem::take(&mut self.0);
        let record = (|| {
            let digits = all.iter().take(6).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(all.get(..digits)?).ok()?.parse().ok()?;
            let (record, rest) = all.split_at_checked(length)?;
            self.0 = rest;
            let text = record.get(digits + 1..)?.strip_suffix(b"\n")?;
            let middle = text.iter().position(|byte| *byte == b'=')?;
            Some((text.get(..middle)?, text.get(middle + 1..)?))
        })();
        Some(record.ok_or_else(|| wrong("an extended header that cannot be read".into())))
    }
}

/// A stretch of a member's content.
enum Piece {
    /// A hole of a sparse file.
    Zeros(u64),
    /// Bytes of the archive.
    Data(u64),
}

/// A member of an archive; reading it gives its content.
pub struct Member<'a, R> {
    archive: &'a mut Archive<R>,
    header: Header,
    size: u64,
    said: Extensions,
    pieces: VecDeque<Piece>,
}

fn wrong(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early")
}

impl<R: Read> Archive<R> {
    /// Reads from here.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
            before: Extensions::default(),
        }
    }

    /// The next member; `None` at the end. What was not read of the one before is passed over.
    pub fn member(&mut self) -> io::Result<Option<Member<'_, R>>> {
        loop {
            self.pass_over()?;
            let Some(mut header) = self.header()? else {
                return if self.before.any() {
                    Err(wrong("it ends after an extension header".into()))
                } else {
                    Ok(None)
                };
            };
            let kind = header.entry_type();
            let known = header.as_gnu().is_some() || header.as_ustar().is_some();
            let size = header.entry_size()?;
            self.expect(size)?;
            let (what, place) = match kind {
                EntryType::GNULongName if known => ("long name", &mut self.before.name),
                EntryType::GNULongLink if known => ("long link name", &mut self.before.link),
                EntryType::XHeader if known => ("extended header", &mut self.before.pax),
                // Nothing of it is used; what was said of the next member still holds.
                EntryType::XGlobalHeader => {
                    return Ok(Some(Member {
                        header,
                        size: 0,
                        said: Extensions::default(),
                        pieces: VecDeque::new(),
                        archive: self,
                    }));
                }
                _ => {
                    let said = std::mem::take(&mut self.before);
                    let mut size = size;
                    if let Some(true_size) = said.number("size")? {
                        size = true_size;
                        self.expect(size)?;
                    }
                    if let Some(uid) = said.number("uid")? {
                        header.set_uid(uid);
                    }
                    if let Some(gid) = said.number("gid")? {
                        header.set_gid(gid);
                    }
                    let mut pieces = VecDeque::from([Piece::Data(size)]);
                    if kind == EntryType::GNUSparse {
                        (pieces, size) = self.sparse(&header, size)?;
                    }
                    return Ok(Some(Member {
                        archive: self,
                        header,
                        size,
                        said,
                        pieces,
                    }));
                }
            };
            if size > EXTENSION_LIMIT {
                return Err(wrong(format!(
                    "a {what} of {size} bytes; at most {EXTENSION_LIMIT} are taken"
                )));
            }
            if place.is_some() {
                return Err(wrong(format!("two of a {what} for one member")));
            }
            let mut bytes = Vec::new();
            self.reader.by_ref().take(size).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size {
                return Err(cut_short());
            }
            *place = Some(bytes);
            self.left = 0;
        }
    }

    /// What follows a header: so many bytes, filled up to whole blocks.
    fn expect(&mut self, size: u64) -> io::Result<()> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        size.checked_add(self.padding)
            .map(drop)
            .ok_or_else(|| wrong(format!("a member of {size} bytes")))
    }

    fn pass_over(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let passed = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())?;
        if passed == rest {
            Ok(())
        } else {
            Err(cut_short())
        }
    }

    /// The next header; `None` at the end of the stream or at the block of zeros that marks an archive's end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? || header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum is made with spaces in its own place, bytes 148 to 155.
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    u32::from(b' ')
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        if header.cksum()? == sum {
            Ok(Some(header))
        } else {
            Err(wrong("a header whose checksum is wrong".into()))
        }
    }

    /// Fills a block; false if the stream ended before it.
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<bool> {
        let mut bytes = Vec::with_capacity(block.len());
        self.reader.by_ref().take(BLOCK).read_to_end(&mut bytes)?;
        match <[u8; 512]>::try_from(bytes) {
            Ok(whole) => {
                *block = whole;
                Ok(true)
            }
            Err(bytes) if bytes.is_empty() => Ok(false),
            Err(_) => Err(cut_short()),
        }
    }

    /// The pieces of a GNU sparse file and its true size. The map stands in the header and in blocks that follow it.
    fn sparse(&mut self, header: &Header, stored: u64) -> io::Result<(VecDeque<Piece>, u64)> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| wrong("a sparse file without GNU's header".into()))?;
        let mut map = Map {
            stored,
            ..Map::default()
        };
        for piece in &gnu.sparse {
            map.add(piece)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(cut_short());
            }
            for piece in &block.sparse {
                map.add(piece)?;
            }
            more = block.is_extended();
        }
        let true_size = gnu.real_size()?;
        let hole = true_size
            .checked_sub(map.at)
            .filter(|_| map.taken == stored)
            .ok_or_else(|| wrong("a sparse file whose map does not fit its size".into()))?;
        map.pieces.push_back(Piece::Zeros(hole));
        Ok((map.pieces, true_size))
    }
}

/// The map of a sparse file, as far as it was read.
#[derive(Default)]
struct Map {
    pieces: VecDeque<Piece>,
    stored: u64,
    taken: u64,
    at: u64,
}

impl Map {
    fn add(&mut self, piece: &GnuSparseHeader) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let (offset, length) = (piece.offset()?, piece.length()?);
        let bad = || wrong("a sparse file whose pieces overlap or run out of it".into());
        let hole = offset.checked_sub(self.at).ok_or_else(bad)?;
        self.at = offset.checked_add(length).ok_or_else(bad)?;
        self.taken = self
            .taken
            .checked_add(length)
            .filter(|taken| *taken <= self.stored)
            .ok_or_else(bad)?;
        if self.pieces.len() >= 2 * PIECES_LIMIT {
            return Err(wrong(format!(
                "a sparse file of more than {PIECES_LIMIT} pieces"
            )));
        }
        self.pieces.push_back(Piece::Zeros(hole));
        self.pieces.push_back(Piece::Data(length));
        Ok(())
    }
}

impl<R> Member<'_, R> {
    /// Its header, with the owner that an extended header named.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of its content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its name.
    pub fn path_bytes(&self) -> Cow<'_, [u8]> {
        match said(self.said.name.as_deref(), self.said.pax.as_deref(), "path") {
            Some(name) => name.into(),
            None => self.header.path_bytes(),
        }
    }

    /// Where it leads.
    pub fn link_name_bytes(&self) -> Option<Cow<'_, [u8]>> {
        said(
            self.said.link.as_deref(),
            self.said.pax.as_deref(),
            "linkpath",
        )
        .map(Cow::from)
        .or_else(|| self.header.link_name_bytes())
    }

    /// What its extended header says.
    pub fn records(&self) -> Records<'_> {
        Records(self.said.pax.as_deref().unwrap_or_default())
    }
}

/// GNU's long name, which ends with a zero, or the extended header's.
fn said<'a>(long: Option<&'a [u8]>, pax: Option<&'a [u8]>, key: &str) -> Option<&'a [u8]> {
    if let Some(long) = long {
        return Some(long.strip_suffix(b"\0").unwrap_or(long));
    }
    Records(pax?)
        .flatten()
        .filter(|(name, _)| *name == key.as_bytes())
        .last()
        .map(|(_, value)| value)
}

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let room =
                |left: u64| usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
            match self.pieces.front_mut() {
                None => return Ok(0),
                Some(Piece::Zeros(0) | Piece::Data(0)) => {
                    self.pieces.pop_front();
                }
                Some(Piece::Zeros(left)) => {
                    let count = room(*left);
                    buffer.get_mut(..count).unwrap_or_default().fill(0);
                    *left = left.saturating_sub(count as u64);
                    return Ok(count);
                }
                Some(Piece::Data(left)) => {
                    let count = room(*left);
                    let into = buffer.get_mut(..count).unwrap_or_default();
                    let count = self.archive.reader.read(into)?;
                    if count == 0 {
                        return Err(cut_short());
                    }
                    *left = left.saturating_sub(count as u64);
                    self.archive.left = self.archive.left.saturating_sub(count as u64);
                    return Ok(count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("file").unwrap();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    /// Counts what was read of an endless stream.
    struct Endless<'a>(&'a std::cell::Cell<u64>, Vec<u8>);

    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in buffer.iter_mut() {
                let at = usize::try_from(self.0.get()).unwrap();
                *byte = self.1.get(at).copied().unwrap_or(b'1');
                self.0.set(self.0.get() + 1);
            }
            Ok(buffer.len())
        }
    }

    fn refused(start: Vec<u8>) -> (String, u64) {
        let read = std::cell::Cell::new(0);
        let error = Archive::new(Endless(&read, start)).member().err().unwrap();
        (error.to_string(), read.get())
    }

    #[test]
    fn an_extension_that_claims_gigabytes_is_refused_before_it_is_read() {
        for (kind, what) in [
            (EntryType::GNULongName, "long name"),
            (EntryType::GNULongLink, "long link name"),
            (EntryType::XHeader, "extended header"),
        ] {
            let (error, read) = refused(header(kind, 8 << 30).as_bytes().to_vec());
            assert_eq!(
                error,
                format!("a {what} of 8589934592 bytes; at most 65536 are taken")
            );
            assert_eq!(read, 512);
        }
    }

    #[test]
    fn a_sparse_map_without_end_is_refused() {
        let mut start = header(EntryType::GNUSparse, 1 << 40);
        let gnu = start.as_gnu_mut().unwrap();
        gnu.isextended[0] = 1;
        gnu.set_real_size(1 << 41);
        start.set_cksum();
        let mut bytes = start.as_bytes().to_vec();
        for number in 0..2000u64 {
            let mut block = GnuExtSparseHeader::new();
            for (index, piece) in block.sparse.iter_mut().enumerate() {
                let offset = (number * 21 + index as u64) * 1024;
                piece
                    .offset
                    .copy_from_slice(format!("{offset:011o}\0").as_bytes());
                piece
                    .numbytes
                    .copy_from_slice(format!("{:011o}\0", 512).as_bytes());
            }
            block.isextended[0] = 1;
            bytes.extend_from_slice(block.as_bytes());
        }
        let (error, read) = refused(bytes);
        assert_eq!(error, "a sparse file of more than 4096 pieces");
        assert!(read < 200 * 512, "{read}");
    }

    #[test]
    fn a_sparse_file_is_read_with_its_holes_and_the_next_member_is_found() {
        let mut first = header(EntryType::GNUSparse, 600);
        let gnu = first.as_gnu_mut().unwrap();
        for (piece, (offset, length)) in gnu.sparse.iter_mut().zip([(1024, 512), (4096, 88)]) {
            piece
                .offset
                .copy_from_slice(format!("{offset:011o}\0").as_bytes());
            piece
                .numbytes
                .copy_from_slice(format!("{length:011o}\0").as_bytes());
        }
        gnu.set_real_size(5000);
        first.set_cksum();
        let mut bytes = first.as_bytes().to_vec();
        bytes.extend([7; 600]);
        bytes.extend([0; 1024 - 600]);
        bytes.extend(header(EntryType::Regular, 3).as_bytes());
        bytes.extend(b"abc");
        bytes.extend([0; 509]);
        let mut archive = Archive::new(bytes.as_slice());
        let mut content = Vec::new();
        let mut member = archive.member().unwrap().unwrap();
        assert_eq!(member.size(), 5000);
        member.read_to_end(&mut content).unwrap();
        let mut expected = vec![0; 5000];
        expected[1024..1536].fill(7);
        expected[4096..4184].fill(7);
        assert!(content == expected);
        content.clear();
        archive
            .member()
            .unwrap()
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        assert_eq!(content, b"abc");
        assert!(archive.member().unwrap().is_none());
    }

    #[test]
    fn what_an_extended_header_says_holds_for_the_next_member_only() {
        let records = b"13 uid=70000\n14 size=00005\n15 user.x=a\nb=\n20 path=a/long/name\n";
        let mut bytes = header(EntryType::XHeader, records.len() as u64)
            .as_bytes()
            .to_vec();
        bytes.extend(records);
        bytes.resize(1024, 0);
        bytes.extend(header(EntryType::XGlobalHeader, 1).as_bytes());
        bytes.resize(bytes.len() + 512, b'g');
        bytes.extend(header(EntryType::Regular, 0).as_bytes());
        bytes.extend(b"hello");
        bytes.resize(bytes.len() + 507, 0);
        bytes.extend(header(EntryType::Regular, 0).as_bytes());
        let mut archive = Archive::new(bytes.as_slice());
        let global = archive.member().unwrap().unwrap();
        assert_eq!(global.header().entry_type(), EntryType::XGlobalHeader);
        let mut member = archive.member().unwrap().unwrap();
        assert_eq!(&*member.path_bytes(), b"a/long/name");
        assert_eq!(member.header().uid().unwrap(), 70000);
        let odd = member.records().nth(2).unwrap().unwrap();
        assert_eq!(odd, (&b"user.x"[..], &b"a\nb="[..]));
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let next = archive.member().unwrap().unwrap();
        assert_eq!((&*next.path_bytes(), next.size()), (&b"file"[..], 0));
        assert!(archive.member().unwrap().is_none());
    }

    #[test]
    fn archives_that_end_too_early_or_have_wrong_sums_are_refused() {
        let whole = [header(EntryType::Regular, 3).as_bytes().as_slice(), b"abc"].concat();
        let mut archive = Archive::new(whole.as_slice());
        drop(archive.member().unwrap().unwrap());
        assert!(archive.member().is_err(), "the padding is missing");
        assert!(Archive::new(&whole[..100]).member().is_err());
        let mut bad = whole.clone();
        bad[0] ^= 1;
        assert!(Archive::new(bad.as_slice()).member().is_err());
        let alone = [
            header(EntryType::GNULongName, 2).as_bytes().as_slice(),
            &[b'a'; 512],
        ]
        .concat();
        assert!(Archive::new(alone.as_slice()).member().is_err());
    }
}
