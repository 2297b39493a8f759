//! Whom the device believes to be its owner, before it asks: the TPM's mark, the kept grant, or the image.
//!
//! ```text
//! mark (TPM) --.
//! grant (disk) +--> start --challenge's chain of successions--> reached --not older than the image?--> kept, and marked
//! image -------'
//! ```
//!
//! The mark goes first although the image may be newer: from the mark the controller's successions lead to any later root of the same
//! owner, and from there a thief's image leads nowhere, whatever epoch it names. The image is looked at again afterwards, so that a
//! controller that lost its newest root, or was set back to an older one, is not followed by a device that was told better.

use protocol::enrolment::owner::Pinned;

/// The owner moved forward less far than the image says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the controller speaks for epoch {reached} of the owner's root keys, and this image is of epoch {image}: the controller was set back, or the image is of another owner"
)]
pub struct Stale {
    /// Where the controller's chain led.
    reached: u64,
    /// What the image says.
    image: u64,
}

/// What the device starts from.
#[must_use]
pub fn start(image: Pinned, kept: Option<Pinned>, mark: Option<Pinned>) -> Pinned {
    match (mark, kept) {
        // The grant is written first, so that its delegation may be the newer one.
        (Some(mark), Some(kept)) if same_root(&mark, &kept) => Pinned {
            delegation: mark.delegation.max(kept.delegation),
            ..mark
        },
        // Who can write to the disk can write any owner there. Where a power cut came before the mark of a later root, the controller's
        // successions lead from the mark to it.
        (Some(mark), _) => mark,
        (None, Some(kept)) => kept,
        (None, None) => image,
    }
}

/// Whether what the chain reached is as new as the image.
///
/// # Errors
/// [`Stale`].
pub fn not_before(image: &Pinned, reached: &Pinned) -> Result<(), Stale> {
    if reached.epoch > image.epoch || same_root(image, reached) {
        return Ok(());
    }
    Err(Stale {
        reached: reached.epoch,
        image: image.epoch,
    })
}

fn same_root(one: &Pinned, other: &Pinned) -> bool {
    one.epoch == other.epoch && one.root == other.root
}

#[cfg(test)]
mod tests {
    use protocol::digest::Digest;

    use super::*;

    fn pinned(owner: &str, epoch: u64, delegation: u64) -> Pinned {
        let hash = |epoch: u64| Digest::of(format!("{owner} {epoch}").as_bytes());
        Pinned {
            epoch,
            root: hash(epoch),
            next: hash(epoch + 1),
            delegation,
        }
    }

    #[test]
    fn the_mark_goes_before_all_else() {
        let ours = |epoch, delegation| pinned("ours", epoch, delegation);
        let thief = pinned("thief", 900, 0);
        let table = [
            (ours(1, 0), None, None, ours(1, 0)),
            (ours(1, 0), Some(ours(2, 5)), None, ours(2, 5)),
            (ours(1, 0), Some(ours(2, 5)), Some(ours(2, 0)), ours(2, 5)),
            (ours(1, 0), Some(ours(3, 1)), Some(ours(2, 0)), ours(2, 0)),
            (ours(1, 0), Some(thief), Some(ours(2, 0)), ours(2, 0)),
            (ours(1, 0), Some(ours(1, 9)), Some(ours(2, 0)), ours(2, 0)),
            (ours(4, 0), None, Some(ours(2, 0)), ours(2, 0)),
            (thief, None, Some(ours(2, 0)), ours(2, 0)),
        ];
        for (row, (image, kept, mark, wanted)) in table.into_iter().enumerate() {
            assert_eq!(start(image, kept, mark), wanted, "row {row}");
        }
    }

    #[test]
    fn what_is_reached_is_as_new_as_the_image() {
        let image = pinned("ours", 3, 0);
        assert_eq!(not_before(&image, &pinned("ours", 3, 7)), Ok(()));
        assert_eq!(not_before(&image, &pinned("ours", 4, 0)), Ok(()));
        assert!(not_before(&image, &pinned("ours", 2, 7)).is_err());
        assert!(not_before(&image, &pinned("thief", 3, 7)).is_err());
    }
}
