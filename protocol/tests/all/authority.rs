use protocol::authority::Authority;

#[test]
fn a_port_is_always_written() {
    for (text, host, port, written) in [
        (
            "controller.example:8443",
            "controller.example",
            8443,
            "controller.example:8443",
        ),
        (
            "controller.example:443",
            "controller.example",
            443,
            "controller.example:443",
        ),
        ("my_host:1", "my_host", 1, "my_host:1"),
        ("10.0.2.2:65535", "10.0.2.2", 65535, "10.0.2.2:65535"),
        ("[::1]:99", "::1", 99, "[::1]:99"),
        ("[2001:db8::1]:443", "2001:db8::1", 443, "[2001:db8::1]:443"),
    ] {
        let read: Authority = text.parse().unwrap();
        assert_eq!((read.host(), read.port()), (host, port), "{text}");
        assert_eq!(read.to_string(), written);
        assert_eq!(Authority::or_port(text, 7), Ok(read.clone()), "{text}");
        assert_eq!(read.to_string().parse(), Ok(read));
    }
}

#[test]
fn a_host_alone_takes_the_readers_port() {
    for (text, written) in [
        ("controller.example", "controller.example:443"),
        ("192.0.2.1", "192.0.2.1:443"),
        ("fe80::1", "[fe80::1]:443"),
        ("[fe80::1]", "[fe80::1]:443"),
    ] {
        assert_eq!(Authority::or_port(text, 443).unwrap().to_string(), written);
        let error = text.parse::<Authority>().unwrap_err();
        assert!(error.to_string().contains("names no port"), "{error}");
        assert!(Authority::or_port(text, 0).is_err());
    }
}

#[test]
fn what_is_no_host_and_port_is_refused() {
    let long = format!("{}:1", ["a".repeat(63).as_str(); 5].join("."));
    for text in [
        "",
        ":",
        ":1",
        "x:",
        "x:0",
        "x:99999",
        "x:+1",
        "x:1 ",
        " x:1",
        "a b:1",
        "https://x:1",
        "https://x",
        "x/y:1",
        "user@x:1",
        "[x]:1",
        "[::1",
        "::1]:1",
        "[::1]1",
        "[]:1",
        "a..b:1",
        ".a:1",
        "a.:1",
        "-a:1",
        "a-:1",
        "\u{e9}:1",
        "1::2:3:4:5:6:7:8:9",
        &"a".repeat(64),
        &long,
    ] {
        assert!(Authority::or_port(text, 443).is_err(), "{text}");
        assert!(text.parse::<Authority>().is_err(), "{text}");
    }
}
