//! One entry for people: demo, test, e2e, bench, image, lint.

fn main() {}
