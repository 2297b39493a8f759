//! Layers as strangers make them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;

/// An archive under construction; names go in as they are, also those that no decent program writes.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(EntryType::Regular, name, "", content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Link, name, target, b"")
    }

    fn over(self, root: &Path) -> Result<(), UnpackError> {
        let bytes = self.0.into_inner().unwrap();
        unpack(root, bytes.as_slice(), Packing::Tar, &mut Limits::default())
    }
}

/// A root to unpack into, with a victim beside it.
struct Place {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/victim"), "untouched").unwrap();
        Self { dir, root }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name)).unwrap()
    }

    fn outside_is_untouched(&self) {
        let outside = self.dir.path().join("outside");
        assert_eq!(
            fs::read_to_string(outside.join("victim")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn an_honest_layer_is_unpacked_with_owners_modes_and_times() {
    let place = Place::new();
    Layer::new()
        .dir("./")
        .dir("etc/")
        .file("etc/hosts", "x")
        .link("bin", "usr/bin")
        .file("usr/bin/deep/tool", "tool")
        .hard("usr/bin/same", "usr/bin/deep/tool")
        .add(EntryType::Fifo, "pipe", "", b"")
        .over(&place.root)
        .unwrap();
    assert_eq!(place.read("etc/hosts"), "x");
    let about = fs::metadata(place.root.join("etc/hosts")).unwrap();
    assert_eq!(
        (
            about.uid(),
            about.gid(),
            about.mode() & 0o7777,
            about.mtime()
        ),
        (12, 34, 0o644, 1_000_000_000)
    );
    let link = fs::symlink_metadata(place.root.join("bin")).unwrap();
    assert_eq!((link.uid(), link.is_symlink()), (12, true));
    assert_eq!(
        fs::metadata(place.root.join("usr/bin/same")).unwrap().ino(),
        fs::metadata(place.root.join("usr/bin/deep/tool"))
            .unwrap()
            .ino()
    );
    assert!(
        fs::metadata(place.root.join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn later_layers_replace_and_go_through_links_inside_the_image() {
    let place = Place::new();
    Layer::new()
        .dir("usr/lib")
        .link("lib", "/usr/lib")
        .file("a", "old")
        .dir("b")
        .file("b/c", "c")
        .over(&place.root)
        .unwrap();
    // `lib` is an absolute link: it leads to the image's /usr/lib, not to the host's.
    Layer::new()
        .file("lib/new", "new")
        .file("a", "new")
        .file("b", "now a file")
        .over(&place.root)
        .unwrap();
    assert_eq!(place.read("usr/lib/new"), "new");
    assert_eq!(place.read("a"), "new");
    assert_eq!(place.read("b"), "now a file");
    // A file where a directory is needed gives way.
    Layer::new().file("b/d/e", "e").over(&place.root).unwrap();
    assert_eq!(place.read("b/d/e"), "e");
}

#[test]
fn whiteouts_take_away_what_lies_below_and_nothing_of_their_own_layer() {
    let place = Place::new();
    Layer::new()
        .file("gone", "x")
        .file("dir/gone", "x")
        .file("dir/sub/gone", "x")
        .file("keep/old", "x")
        .over(&place.root)
        .unwrap();
    Layer::new()
        .file("dir/fresh", "fresh")
        .file("dir/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .file(".wh.never-was", "")
        .file("no/such/.wh.dir", "")
        .file("keep/new", "new")
        .file("keep/.wh.new", "")
        .file("keep/.wh.old", "")
        .file("keep/.wh..wh.plnk", "")
        .over(&place.root)
        .unwrap();
    assert!(!place.root.join("gone").exists());
    assert_eq!(place.read("dir/fresh"), "fresh");
    assert_eq!(fs::read_dir(place.root.join("dir")).unwrap().count(), 1);
    assert_eq!(place.read("keep/new"), "new");
    assert_eq!(fs::read_dir(place.root.join("keep")).unwrap().count(), 1);
    assert!(!place.root.join("no").exists());
}

#[test]
fn nothing_leads_out_of_the_image() {
    // Names with `..`.
    for name in [
        "../outside/victim",
        "a/../../outside/victim",
        "..",
        "/../outside/victim",
    ] {
        let place = Place::new();
        let error = Layer::new()
            .file(name, "evil")
            .over(&place.root)
            .unwrap_err();
        assert!(error.to_string().contains(".."), "{error}");
        place.outside_is_untouched();
    }
    // Links that lead out, then something through them: it lands inside, or is refused.
    for target in ["../outside", "../../../../../../../../outside", "/outside"] {
        let place = Place::new();
        let _ = Layer::new()
            .link("way", target)
            .file("way/victim", "evil")
            .file("way/more", "evil")
            .over(&place.root);
        place.outside_is_untouched();
        let _ = Layer::new()
            .file("way/.wh.victim", "")
            .file("way/.wh..wh..opq", "")
            .over(&place.root);
        place.outside_is_untouched();
    }
    // The absolute path of the real victim, by a link that another layer made.
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    symlink(&outside, place.root.join("way")).unwrap();
    let _ = Layer::new()
        .file("way/victim", "evil")
        .file("way/.wh.victim", "")
        .dir("way/sub")
        .hard("stolen", "way/victim")
        .over(&place.root);
    place.outside_is_untouched();
    assert!(!place.root.join("stolen").exists());
    // A file over a link replaces the link, and does not write through it.
    let place = Place::new();
    symlink(
        place.dir.path().join("outside/victim"),
        place.root.join("file"),
    )
    .unwrap();
    Layer::new().file("file", "new").over(&place.root).unwrap();
    place.outside_is_untouched();
    assert_eq!(place.read("file"), "new");
    // A directory over a link does the same.
    let place = Place::new();
    symlink(place.dir.path().join("outside"), place.root.join("dir")).unwrap();
    Layer::new()
        .dir("dir")
        .file("dir/victim", "evil")
        .over(&place.root)
        .unwrap();
    place.outside_is_untouched();
    assert_eq!(place.read("dir/victim"), "evil");
    // Hard links resolve inside, and not through a last link.
    for target in ["../outside/victim", "/outside/victim", "way/victim"] {
        let place = Place::new();
        symlink(place.dir.path().join("outside"), place.root.join("way")).unwrap();
        assert!(
            Layer::new()
                .hard("stolen", target)
                .over(&place.root)
                .is_err()
        );
        place.outside_is_untouched();
    }
}

#[test]
fn oddities_are_refused_in_words() {
    let cases = [
        (Layer::new().link("a", "a").file("a/b", ""), "circles"),
        (Layer::new().link("a", "nowhere").file("a/b", ""), "nowhere"),
        (Layer::new().hard("a", "missing"), "hard link to nothing"),
        (
            Layer::new().dir("d").hard("a", "d"),
            "hard link to a directory",
        ),
        (Layer::new().hard("a", "/"), "root directory"),
        (Layer::new().link("a", ""), "without a target"),
        (Layer::new().file(".wh.", ""), "whiteout of nothing"),
        (Layer::new().file(".wh...", ""), "whiteout of nothing"),
        (
            Layer::new().add(EntryType::new(b'V'), "label", "", b""),
            "kind",
        ),
    ];
    for (layer, said) in cases {
        let place = Place::new();
        let error = layer.over(&place.root).unwrap_err().to_string();
        assert!(error.contains(said), "{error} should contain {said}");
    }
}

#[test]
fn devices_are_made_and_overlay_attributes_are_not() {
    let place = Place::new();
    let mut layer = Layer::new();
    let attributes: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.mine", b"yes"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ];
    layer.0.append_pax_extensions(attributes).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("file").unwrap();
    header.set_size(0);
    header.set_mode(0o4755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    layer.0.append(&header, &b""[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("null").unwrap();
    header.set_entry_type(EntryType::Char);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    layer.0.append(&header, &b""[..]).unwrap();
    layer.over(&place.root).unwrap();
    let file = place.root.join("file");
    assert_eq!(xattr::get(&file, "user.mine").unwrap().unwrap(), b"yes");
    assert_eq!(xattr::list(&file).unwrap().count(), 1);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o4755);
    let null = fs::metadata(place.root.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), nix::sys::stat::makedev(1, 3));
}

#[test]
fn size_and_number_are_bounded() {
    let place = Place::new();
    let bytes = Layer::new()
        .file("a", "12345")
        .file("b", "12345")
        .0
        .into_inner()
        .unwrap();
    let mut limits = Limits::new(9, 9);
    let error = unpack(&place.root, bytes.as_slice(), Packing::Tar, &mut limits).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(9)), "{error}");
    let mut limits = Limits::new(99, 1);
    let error = unpack(&place.root, bytes.as_slice(), Packing::Tar, &mut limits).unwrap_err();
    assert!(matches!(error, UnpackError::TooMany(1)), "{error}");
    // The reason on a small disk is the disk.
    let mut limits = Limits::within(9);
    let error = unpack(&place.root, bytes.as_slice(), Packing::Tar, &mut limits).unwrap_err();
    assert!(matches!(error, UnpackError::NoRoom(9)), "{error}");
    let usual = Limits::default();
    assert_eq!(Limits::within(u64::MAX).bytes, usual.bytes);
    let mut limits = Limits::new(10, 2);
    unpack(&place.root, bytes.as_slice(), Packing::Tar, &mut limits).unwrap();
}

#[test]
fn packed_and_damaged_layers() {
    let bytes = Layer::new()
        .file("a", &"x".repeat(100_000))
        .0
        .into_inner()
        .unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
    for (layer, packing) in [(&gzip, Packing::Gzip), (&zstd, Packing::Zstd)] {
        let place = Place::new();
        unpack(
            &place.root,
            layer.as_slice(),
            packing,
            &mut Limits::default(),
        )
        .unwrap();
        assert_eq!(place.read("a").len(), 100_000);
        let torn = &layer[..layer.len() / 2];
        let place = Place::new();
        assert!(unpack(&place.root, torn, packing, &mut Limits::default()).is_err());
    }
    for damaged in [
        &b"not a tar archive at all"[..],
        &[0xff; 2048][..],
        &bytes[..700],
    ] {
        let place = Place::new();
        assert!(unpack(&place.root, damaged, Packing::Tar, &mut Limits::default()).is_err());
    }
}

#[test]
fn a_deep_tree_is_removed_without_exhausting_anything() {
    let place = Place::new();
    let deep = "d/".repeat(45) + "file";
    Layer::new().file(&deep, "x").over(&place.root).unwrap();
    Layer::new().file(".wh.d", "").over(&place.root).unwrap();
    assert_eq!(fs::read_dir(&place.root).unwrap().count(), 0);
}

#[test]
fn a_small_blob_that_claims_gigabytes_of_extension_headers_is_refused() {
    let place = Place::new();
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(4 << 30);
        header.set_cksum();
        // 64 MiB of zeros are 64 KiB of gzip: as a name they would stay in memory until the member comes.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(header.as_bytes()).unwrap();
        io::copy(&mut io::repeat(0).take(64 << 20), &mut gzip).unwrap();
        let layer = gzip.finish().unwrap();
        assert!(layer.len() < 128 * 1024);
        let error = unpack(
            &place.root,
            layer.as_slice(),
            Packing::Gzip,
            &mut Limits::default(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("of 4294967296 bytes"), "{error}");
    }
}

#[test]
fn content_counts_whatever_it_belongs_to() {
    for kind in [
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::XGlobalHeader,
    ] {
        let place = Place::new();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("a").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let layer = header.as_bytes().as_slice();
        let error = unpack(&place.root, layer, Packing::Tar, &mut Limits::default()).unwrap_err();
        assert!(
            matches!(error, UnpackError::TooLarge(_)),
            "{kind:?}: {error}"
        );
    }
}
