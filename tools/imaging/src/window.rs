//! A part of a device seen as a device of its own: positions are relative and nothing outside can be touched.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// `len` bytes of `inner`, beginning at byte `start`.
pub struct Window<'a, D: ?Sized> {
    inner: &'a mut D,
    start: u64,
    len: u64,
    position: u64,
}

impl<'a, D: ?Sized> Window<'a, D> {
    /// Opens the window, positioned at its first byte. An end beyond `u64::MAX` is cut off there.
    pub fn new(inner: &'a mut D, start: u64, len: u64) -> Self {
        Self {
            inner,
            start,
            len: len.min(u64::MAX - start),
            position: 0,
        }
    }

    /// Position inside the window, bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn room(&self, wanted: usize) -> usize {
        let left = self.len.saturating_sub(self.position);
        usize::try_from(left).map_or(wanted, |left| left.min(wanted))
    }
}

impl<D: Read + Seek + ?Sized> Read for Window<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        self.inner
            .seek(SeekFrom::Start(self.start + self.position))?;
        let n = self.inner.read(buffer)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl<D: Write + Seek + ?Sized> Write for Window<'_, D> {
    /// Writes nothing (`Ok(0)`, which `write_all` turns into an error) at the window's end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len());
        let Some(bytes) = bytes.get(..room).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        self.inner
            .seek(SeekFrom::Start(self.start + self.position))?;
        let n = self.inner.write(bytes)?;
        self.position += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<D: ?Sized> Seek for Window<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
        };
        match target {
            Some(n) if n <= self.len => {
                self.position = n;
                Ok(n)
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "position outside the partition",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_window_has_hard_edges() {
        let mut disk = Cursor::new(vec![0u8; 100]);
        let mut window = Window::new(&mut disk, 10, 20);
        window.write_all(&[1; 20]).unwrap();
        assert_eq!(
            window.write_all(&[1]).unwrap_err().kind(),
            io::ErrorKind::WriteZero
        );
        assert!(window.seek(SeekFrom::Start(21)).is_err());
        assert!(window.seek(SeekFrom::Current(-21)).is_err());
        window.seek(SeekFrom::End(-2)).unwrap();
        let mut rest = Vec::new();
        window.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [1, 1]);
        let disk = disk.into_inner();
        assert_eq!(disk.iter().filter(|b| **b == 1).count(), 20);
        assert_eq!((disk[9], disk[10], disk[29], disk[30]), (0, 1, 1, 0));
    }
}
