//! `skerry login`: password for token.

use std::io::{IsTerminal as _, stdin};

use operator_api::TokenRequest;

use crate::cli::Login;
use crate::client::Client;
use crate::context::{Access, Config, Context, first_line, normalise, read_password, read_roots};
use crate::failure::Failure;
use crate::terminal;

pub fn run(args: Login, context: Option<&str>) -> Result<(), Failure> {
    let server = normalise(&args.server)?;
    let ca = args.ca.as_deref().map(read_roots).transpose()?;
    let password = password(&args)?;
    let login = TokenRequest {
        user: args.user.clone(),
        password,
    };
    let token = crate::runtime(async {
        let client = Client::new(Access {
            server: server.clone(),
            ca: ca.clone(),
            token: None,
        })?;
        let what = format!("log in to {server} as {}", args.user);
        client.log_in(&login, &what).await
    })?;

    let path = Config::path()?;
    let mut config = Config::load(&path)?;
    let expires = token.expires;
    let name = config.put(
        context,
        Context {
            server: server.clone(),
            ca_certificates: ca,
            user: Some(token.user.clone()),
            token: Some(token.token),
            expires: Some(expires),
        },
    );
    config.save(&path)?;
    terminal::say(format!(
        "logged in to {server} as {} until {expires:.0} (context {name})",
        token.user
    ))
}

fn password(args: &Login) -> Result<String, Failure> {
    if let Some(path) = &args.password_file {
        return read_password(path);
    }
    if !args.password_stdin && stdin().is_terminal() {
        return terminal::ask_secret(&format!("Password of {}: ", args.user));
    }
    if !args.password_stdin {
        return Err(Failure::usage(
            "standard input is no terminal to ask for the password on: give --password-file FILE or --password-stdin",
        ));
    }
    let mut line = String::new();
    stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::error(format!("cannot read the password: {error}")))?;
    first_line(&line).ok_or_else(|| Failure::usage("there is no password on standard input"))
}
