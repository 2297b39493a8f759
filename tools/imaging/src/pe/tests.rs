//! Files made by hand, judged by osslsigncode as well.

use std::process::Command;

use super::*;

const OPTIONAL: usize = 0x40 + 4 + COFF;
const TABLE: usize = OPTIONAL + 240;
const HEADERS: usize = 0x400;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A PE32+ file with the given sections, one after the other, and bytes behind them.
fn file(sections: &[(&str, &[u8])], behind: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADERS];
    put(&mut bytes, 0, b"MZ");
    put(&mut bytes, 0x3c, &0x40_u32.to_le_bytes());
    put(&mut bytes, 0x40, b"PE\0\0");
    // x86-64, an executable.
    put(&mut bytes, 0x44, &0x8664_u16.to_le_bytes());
    put(&mut bytes, 0x46, &(sections.len() as u16).to_le_bytes());
    put(&mut bytes, 0x54, &240_u16.to_le_bytes());
    put(&mut bytes, 0x56, &0x0206_u16.to_le_bytes());
    put(&mut bytes, OPTIONAL, &PE32_PLUS.to_le_bytes());
    // Entry point, alignments, size in memory, headers, checksum, EFI application, directories.
    for (at, value) in [
        (16, 0x1000_u32),
        (32, 0x1000),
        (36, 0x200),
        (56, 0x1000 * (1 + sections.len() as u32)),
        (60, HEADERS as u32),
        (64, 0xdead_beef),
        (68, 10),
        (108, 16),
    ] {
        put(&mut bytes, OPTIONAL + at, &value.to_le_bytes());
    }
    for (index, (name, content)) in sections.iter().enumerate() {
        let place = bytes.len();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(0x200), 0);
        let stored = bytes.len() - place;
        let entry = TABLE + index * ENTRY;
        put(&mut bytes, entry, name.as_bytes());
        for (at, value) in [
            (8, content.len()),
            (12, 0x1000 * (index + 1)),
            (16, stored),
            (20, place),
        ] {
            put(&mut bytes, entry + at, &(value as u32).to_le_bytes());
        }
    }
    bytes.extend_from_slice(behind);
    bytes
}

fn sample() -> Vec<u8> {
    file(
        &[
            (".text", &[0xc3; 700]),
            (".linux", b"a kernel"),
            (".empty", b""),
        ],
        b"symbols, 24 bytes, even!",
    )
}

/// The digest, computed in another way: over the file with the changeable places cut out.
fn cut_out(bytes: &[u8]) -> Digest {
    let entry = OPTIONAL + DIRECTORIES + CERTIFICATES * DIRECTORY;
    let parts = [
        &bytes[..OPTIONAL + CHECKSUM],
        &bytes[OPTIONAL + CHECKSUM + 4..entry],
        &bytes[entry + DIRECTORY..],
    ];
    Digest::of(&parts.concat())
}

/// A certificate table at the end, as a signing tool leaves it.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    let place = bytes.len();
    bytes.extend([0x5a; 64]);
    let entry = OPTIONAL + DIRECTORIES + CERTIFICATES * DIRECTORY;
    put(&mut bytes, entry, &(place as u32).to_le_bytes());
    put(&mut bytes, entry + 4, &64_u32.to_le_bytes());
    bytes
}

#[test]
fn what_a_signature_changes_does_not_change_the_digest() {
    let bytes = sample();
    let image = Image::parse(&bytes).unwrap();
    assert!(!image.is_signed());
    assert_eq!(image.authenticode(), cut_out(&bytes));
    let mut signed = signed(bytes.clone());
    put(&mut signed, OPTIONAL + CHECKSUM, &[1, 2, 3, 4]);
    let again = Image::parse(&signed).unwrap();
    assert!(again.is_signed());
    assert_eq!(again.authenticode(), image.authenticode());
}

#[test]
fn every_other_byte_changes_the_digest() {
    let bytes = sample();
    let digest = Image::parse(&bytes).unwrap().authenticode();
    let entry = OPTIONAL + DIRECTORIES + CERTIFICATES * DIRECTORY;
    for place in 0..bytes.len() {
        let is_left_out = (OPTIONAL + CHECKSUM..OPTIONAL + CHECKSUM + 4).contains(&place)
            || (entry..entry + DIRECTORY).contains(&place);
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        if let Ok(image) = Image::parse(&changed) {
            assert_eq!(image.authenticode() == digest, is_left_out, "byte {place}");
        }
    }
}

/// osslsigncode signs files, padding them to eight bytes first, and says which digest it then finds. It must be ours.
#[test]
fn osslsigncode_computes_the_same_digest() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    std::fs::write(at("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(at("certificate.pem"), certificate.pem()).unwrap();
    let tool = || Command::new("osslsigncode");
    for (name, bytes) in [
        ("with bytes behind", sample()),
        ("plain", file(&[(".text", &[1; 0x1234])], b"")),
        ("padded", file(&[(".text", &[1; 0x1234])], b"odd")),
    ] {
        std::fs::write(at("unsigned.efi"), &bytes).unwrap();
        let _ = std::fs::remove_file(at("signed.efi"));
        let output = tool()
            .current_dir(folder.path())
            .args([
                "sign",
                "-h",
                "sha256",
                "-certs",
                "certificate.pem",
                "-key",
                "key.pem",
            ])
            .args(["-in", "unsigned.efi", "-out", "signed.efi"])
            .output()
            .expect("osslsigncode is among the prerequisites: cargo xtask test installs them");
        assert!(output.status.success(), "{name}: {output:?}");
        // Nobody vouches for the certificate, so it does not end well; the digest is told before.
        let output = tool()
            .args(["verify", "-in"])
            .arg(at("signed.efi"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).to_lowercase();
        let signed = std::fs::read(at("signed.efi")).unwrap();
        let image = Image::parse(&signed).unwrap();
        assert!(image.is_signed());
        let digest = image.authenticode();
        let found = said
            .lines()
            .find(|line| line.starts_with("calculated message digest"))
            .unwrap_or_default();
        assert!(
            found.contains(&digest.hex()),
            "{name}: {} is not in {said}",
            digest.hex()
        );
        // Unpadded, the file has this digest before and after.
        let before = Image::parse(&bytes).unwrap().authenticode();
        assert_eq!(before == digest, bytes.len().is_multiple_of(8), "{name}");
    }
}

#[test]
fn sections_are_found_by_name_as_they_are_loaded() {
    let bytes = sample();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!(image.section(".linux"), Ok(Some(&b"a kernel"[..])));
    assert_eq!(image.section(".text").unwrap().unwrap().len(), 700);
    assert_eq!(image.section(".empty"), Ok(Some(&[][..])));
    assert_eq!(image.section(".lin"), Ok(None));
    let twice = file(&[(".osrel", b"1"), (".osrel", b"2")], b"");
    assert!(Image::parse(&twice).unwrap().section(".osrel").is_err());
    let mut zeros = sample();
    put(&mut zeros, TABLE + 8, &0x401_u32.to_le_bytes());
    let error = Image::parse(&zeros).unwrap().section(".text").unwrap_err();
    assert_eq!(
        error.to_string(),
        "its section .text has 1025 bytes, and 1024 of them in the file"
    );
}

#[test]
fn files_that_are_measured_in_no_one_way_are_refused() {
    let entry = OPTIONAL + DIRECTORIES + CERTIFICATES * DIRECTORY;
    let with = |at: usize, value: &[u8]| {
        let mut bytes = sample();
        put(&mut bytes, at, value);
        Image::parse(&bytes).unwrap_err().to_string()
    };
    let number = |value: u32| value.to_le_bytes();
    for (at, value, reason) in [
        (0, &b"ZM"[..], "does not begin with MZ"),
        (0x3c, &number(0x44), "no PE header"),
        (0x3c, &number(u32::MAX), "ends before its PE header"),
        (0x46, &[0, 0], "0 sections"),
        (0x46, &[97, 0], "97 sections"),
        (0x46, &[60, 0], "do not hold the section table"),
        (0x54, &[0xff, 0xff], "do not hold the section table"),
        (0x54, &[100, 0], "no room for 16 directories"),
        (OPTIONAL, &[0x0b, 1], "64-bit firmware"),
        (OPTIONAL + 108, &number(17), "17 directories"),
        (
            OPTIONAL + 60,
            &number(0x200),
            "what is before it ends at 512",
        ),
        (OPTIONAL + 60, &number(1 << 20), "longer than the file"),
        (TABLE + 16, &number(0x600), "what is before it ends at 2560"),
        (
            TABLE + 16,
            &number(u32::MAX),
            "ends before its sections' end",
        ),
        (
            TABLE + 20,
            &number(0x600),
            "its section .text lies at byte 1536, but what is before it ends at 1024",
        ),
        (
            entry,
            &[8, 0, 0, 0, 8, 0, 0, 0],
            "its certificate table, 8 bytes at 8",
        ),
        (entry, &[8, 0, 0, 0, 0, 0, 0, 0], "is not the last thing"),
    ] {
        let error = with(at, value);
        assert!(error.contains(reason), "{at:#x}: {error}");
    }
    let mut hidden = signed(sample());
    hidden.push(0);
    assert!(Image::parse(&hidden).is_err());
}

#[test]
fn no_cut_and_no_changed_byte_makes_anything_panic() {
    let bytes = signed(sample());
    for length in 0..bytes.len() {
        // What is cut off may be what no section holds, but the certificate table is then not where it should be.
        assert!(Image::parse(&bytes[..length]).is_err(), "{length}");
    }
    for place in 0..HEADERS {
        for value in [0, 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[place] = value;
            if let Ok(image) = Image::parse(&changed) {
                let _ = image.authenticode();
                let _ = image.section(".linux");
            }
        }
    }
}
