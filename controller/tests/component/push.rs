//! The link and what goes over it: changes within a second, consoles both ways.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use operator_api::API_PREFIX;
use protocol::ids::SessionId;
use protocol::link::{CLOSE_REFUSED, Nonce, Proof, ServerMessage};
use protocol::paths;
use reqwest::Method;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::device::Device;
use crate::site::{Site, container};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn connect(site: &Site, path: &str, token: Option<&str>) -> Result<Socket, Error> {
    let tcp = TcpStream::connect(site.address).await.unwrap();
    let tls = TlsConnector::from(site.tls.clone())
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap();
    let mut request = format!("wss://localhost:{}{path}", site.address.port())
        .into_client_request()
        .unwrap();
    if let Some(token) = token {
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    Ok(tokio_tungstenite::client_async(request, tls).await?.0)
}

async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(10), socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if !matches!(message, Message::Ping(_) | Message::Pong(_)) {
            return message;
        }
    }
}

async fn next_order(socket: &mut Socket) -> ServerMessage {
    match next(socket).await {
        Message::Text(text) => ServerMessage::from_text(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn hello(socket: &mut Socket) -> Nonce {
    match next_order(socket).await {
        ServerMessage::Hello { nonce } => nonce,
        other => panic!("{other:?}"),
    }
}

async fn send_proof(socket: &mut Socket, device: &Device, signer: &Device, nonce: Nonce) {
    let proof = Proof {
        device: device.id,
        time: 0,
        nonce,
    };
    let sealed = proof.seal(&device.hash(), &signer.identity).unwrap();
    socket.send(Message::Binary(sealed.into())).await.unwrap();
}

async fn link(site: &Site, device: &Device) -> Socket {
    let mut socket = connect(site, paths::LINK, None).await.unwrap();
    let nonce = hello(&mut socket).await;
    send_proof(&mut socket, device, device, nonce).await;
    let open = async |site: &Site| site_has_link(site, device).then_some(());
    site.eventually("the link is open", open).await;
    socket
}

fn site_has_link(site: &Site, device: &Device) -> bool {
    site.fleet().links().is_open(device.id)
}

#[tokio::test]
async fn a_change_is_told_within_a_second() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    let other = Device::attested(&site, "SN-2").await;
    let mut socket = link(&site, &device).await;
    let mut elsewhere = link(&site, &other).await;
    site.deploy("web", "box-1", 8080).await;
    let mut told = async |what: &str, since: Instant| {
        assert_eq!(
            next_order(&mut socket).await,
            ServerMessage::ConfigChanged,
            "{what}"
        );
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{what}: after {:?}",
            since.elapsed()
        );
    };
    told("an app is made", Instant::now()).await;
    let since = Instant::now();
    site.put("apps/web", &container("web", "box-1", 8081)).await;
    told("an app changes", since).await;
    let mut moved = crate::site::datastore();
    moved["spec"]["url"] = "docker://192.0.2.2:5000".into();
    let since = Instant::now();
    site.put("datastores/demo", &moved).await;
    told("its datastore changes", since).await;
    let since = Instant::now();
    site.ask(Method::DELETE, "apps/web", None).await;
    told("an app goes", since).await;
    let silence = tokio::time::timeout(Duration::from_millis(200), async {
        loop {
            if matches!(elsewhere.next().await.unwrap().unwrap(), Message::Text(_)) {
                return;
            }
        }
    });
    assert!(
        silence.await.is_err(),
        "the other device has nothing to fetch"
    );
}

#[tokio::test]
async fn a_link_without_a_fitting_proof_is_closed() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    let other = Device::attested(&site, "SN-2").await;
    let stranger = Device::new("SN-3", None);
    let closed = async |mut socket: Socket, what: &str| match next(&mut socket).await {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), CLOSE_REFUSED, "{what}"),
        other => panic!("{what}: {other:?}"),
    };
    let mut socket = connect(&site, paths::LINK, None).await.unwrap();
    let nonce = hello(&mut socket).await;
    send_proof(&mut socket, &device, &other, nonce).await;
    closed(socket, "somebody else's signature").await;

    let mut replayed = connect(&site, paths::LINK, None).await.unwrap();
    hello(&mut replayed).await;
    send_proof(&mut replayed, &device, &device, nonce).await;
    closed(replayed, "a proof of another connection").await;

    let mut socket = connect(&site, paths::LINK, None).await.unwrap();
    let nonce = hello(&mut socket).await;
    send_proof(&mut socket, &stranger, &stranger, nonce).await;
    closed(socket, "a stranger").await;

    let mut socket = connect(&site, paths::LINK, None).await.unwrap();
    hello(&mut socket).await;
    socket
        .send(Message::Binary(vec![0xff; 64].into()))
        .await
        .unwrap();
    closed(socket, "garbage").await;
    assert!(!site_has_link(&site, &device));
}

#[tokio::test]
async fn a_deleted_device_is_cut_off() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let mut socket = link(&site, &device).await;
    site.ask(Method::DELETE, "devices/box-1", None).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(Ok(_)) = socket.next().await {}
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let app = site.deploy("web", "box-1", 8080).await;
    let path = format!("{API_PREFIX}/apps/web/console");
    let status = |result: Result<Socket, Error>| match result {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        status(connect(&site, &path, Some(&site.token)).await),
        503,
        "the device is not connected"
    );
    assert_eq!(status(connect(&site, &path, None).await), 401);
    assert_eq!(
        status(connect(&site, &paths::console(SessionId::random()), None).await),
        404
    );

    let mut socket = link(&site, &device).await;
    let mut operator = connect(&site, &path, Some(&site.token)).await.unwrap();
    let ServerMessage::OpenConsole {
        session,
        app: asked,
    } = next_order(&mut socket).await
    else {
        panic!()
    };
    assert_eq!(Some(asked.0), app.metadata.uid);
    let mut end = connect(&site, &paths::console(session), None)
        .await
        .unwrap();
    assert_eq!(
        status(connect(&site, &paths::console(session), None).await),
        404,
        "a session is good once"
    );
    end.send(Message::Binary(b"login: ".to_vec().into()))
        .await
        .unwrap();
    assert_eq!(
        next(&mut operator).await,
        Message::Binary(b"login: ".to_vec().into())
    );
    operator
        .send(Message::Binary(b"root\r".to_vec().into()))
        .await
        .unwrap();
    assert_eq!(
        next(&mut end).await,
        Message::Binary(b"root\r".to_vec().into())
    );
    // More than all buffers hold, so that it must flow.
    let block = vec![b'x'; 4096];
    for _ in 0..256 {
        end.send(Message::Binary(block.clone().into()))
            .await
            .unwrap();
        assert_eq!(next(&mut operator).await.into_data().len(), block.len());
    }
    end.close(None).await.unwrap();
    assert!(matches!(next(&mut operator).await, Message::Close(_)));
}
