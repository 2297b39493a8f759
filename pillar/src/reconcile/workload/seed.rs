//! A cloud-init NoCloud seed: a small FAT disk labelled `CIDATA` that holds `meta-data` and `user-data` (cloud-init,
//! "NoCloud" data source).

use std::io::{self, Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

/// Largest user data: 1 MiB. The wire carries no more.
const USER_DATA_LIMIT: usize = 1 << 20;

/// The seed disk's bytes.
pub fn disk(instance: &str, hostname: &str, user_data: &str) -> io::Result<Vec<u8>> {
    if user_data.len() > USER_DATA_LIMIT {
        return Err(io::Error::other(format!(
            "the user data has more than {USER_DATA_LIMIT} bytes"
        )));
    }
    // Room for the data, both tables and the directory.
    let size = (user_data.len() + 256 * 1024).next_multiple_of(64 * 1024);
    let mut bytes = vec![0u8; size];
    let options = FormatVolumeOptions::new()
        .volume_label(*b"CIDATA     ")
        .fat_type(FatType::Fat12);
    fatfs::format_volume(Cursor::new(bytes.as_mut_slice()), options)?;
    {
        let disk = FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new())?;
        let root = disk.root_dir();
        let meta = format!("instance-id: {instance}\nlocal-hostname: {hostname}\n");
        root.create_file("meta-data")?.write_all(meta.as_bytes())?;
        root.create_file("user-data")?
            .write_all(user_data.as_bytes())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_seed_is_read_back() {
        for length in [0, 10, 300_000, USER_DATA_LIMIT] {
            let user_data = "x".repeat(length);
            let mut bytes = disk("id-1", "web", &user_data).unwrap();
            let disk =
                FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new()).unwrap();
            assert_eq!(disk.volume_label(), "CIDATA");
            let mut text = String::new();
            disk.root_dir()
                .open_file("user-data")
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, user_data);
            text.clear();
            disk.root_dir()
                .open_file("meta-data")
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "instance-id: id-1\nlocal-hostname: web\n");
        }
        assert!(disk("i", "h", &"x".repeat(USER_DATA_LIMIT + 1)).is_err());
    }
}
