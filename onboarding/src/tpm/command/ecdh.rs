//! TPM2_ECDH_ZGen.

use super::{Auth, Command, CommandCode, Object, Protect, Salted};
use crate::tpm::{Tpm, TpmError};
use crate::wire::{EccPoint, Reader, Writer};

impl Tpm {
    /// Multiplies another party's public point by the private number of `key`. Unlike most ECDH interfaces it gives the
    /// whole shared point, which EVE's cipher blocks need. The point is a secret: it crosses the bus encrypted by `session`.
    ///
    /// # Errors
    /// [`TpmError`]; the TPM refuses a point that is not on the curve.
    pub fn ecdh_zgen(
        &self,
        key: &Object,
        session: &Salted,
        other: &EccPoint,
    ) -> Result<EccPoint, TpmError> {
        let command = Command::new(CommandCode::ECDH_ZGEN)
            .with_object(key, Auth::Salted(session, Protect::Answer))
            .parameters(|p| {
                let mut point = Writer::new();
                other.write(&mut point);
                p.sized(point.as_slice());
            });
        self.run(&command, |_, reader| {
            let mut inner = Reader::new(reader.sized("shared point", 4 + 64)?);
            let point = EccPoint::read(&mut inner)?;
            inner.end("shared point")?;
            Ok(point)
        })
    }
}
