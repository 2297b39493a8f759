//! Whatever comes as a configuration is refused or understood; what was understood encodes and decodes to itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use protocol::cipher::{BlockKey, KeyAgreement as _, SoftwareAgreement, decrypt_secrets, find_context};
use protocol::envelope::decode;
use protocol::eve::config::ConfigResponse;
use protocol::keys::CertHash;

fuzz_target!(|data: &[u8]| {
    let Ok(response) = decode::<ConfigResponse>(data, "ConfigResponse") else { return };
    let bytes = response.encode_to_vec();
    let again: ConfigResponse = decode(&bytes, "ConfigResponse").expect("what was encoded decodes");
    // Compared as bytes, because NaN is not equal to itself; maps may come in another order, but have the same size.
    assert_eq!(again.encoded_len(), bytes.len());

    let Some(config) = response.config else { return };
    let own = SoftwareAgreement::from_scalar(&[1; 32]).expect("a valid scalar");
    let point = own.public_point().expect("a valid key");
    let key = BlockKey::from_shared(&own.agree(&point).expect("a valid point"));
    for block in config.datastores.iter().filter_map(|store| store.cipher_data.as_ref()) {
        let _ = find_context(&config.cipher_contexts, block, &CertHash::Short([0; 16]));
        let _ = decrypt_secrets(&key, block);
    }
});
