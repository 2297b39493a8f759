//! The operator's objects: what the controller's operator API and the command line exchange.
