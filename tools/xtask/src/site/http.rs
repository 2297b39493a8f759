//! One page over HTTP, without a library between us and the wire.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};

/// Gets `/` from `address`; anything but 200 is an error that holds the answer.
pub fn http_get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: box\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    let page = String::from_utf8_lossy(&page).into_owned();
    ensure!(
        page.starts_with("HTTP/1.") && page.contains(" 200 "),
        "the answer is {page:?}"
    );
    Ok(page)
}
