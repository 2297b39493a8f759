//! Errors of libraries that hide their sources from `Display`: reqwest's own text says little more than "error sending
//! request".

use std::error::Error;

/// An error with everything below it, each thing said once.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Layer {
        said: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn each_layer_is_told_and_none_twice() {
        let layer = |said, source: Option<Layer>| Layer {
            said,
            source: source.map(Box::new),
        };
        let bottom = layer("no route", None);
        let error = layer("sending", Some(layer("connect: no route", Some(bottom))));
        assert_eq!(chain(&error), "sending: connect: no route");
    }
}
