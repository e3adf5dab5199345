//! Verifies a server's evidence, then talks to it; and the local verifying proxy.
