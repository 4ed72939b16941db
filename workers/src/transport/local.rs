//! Errors of this machine: what it could not do whoever was to be spoken to. They blame neither the mail nor the transport.

use std::io;

/// Whether this machine lacks something, or does not allow it: file descriptors, ports, memory, buffers; a rule of its own firewall.
pub fn is_local(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EADDRINUSE,
            libc::EACCES,
            libc::EPERM,
            libc::EAFNOSUPPORT,
        ]
        .contains(&code)
    })
}

/// Whether there is no file descriptor left just now. To be asked after a failure that may have hidden that: the system's resolver says only that it
/// has no answer.
pub fn is_starved() -> bool {
    std::fs::File::open("/dev/null").is_err_and(|error| is_local(&error))
}

/// The error, or the one behind it where there is no file descriptor left.
pub fn or_starved(error: io::Error) -> io::Error {
    if !is_local(&error) && is_starved() { io::Error::from_raw_os_error(libc::EMFILE) } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_this_machine_are_told_from_those_of_the_other_side() {
        let local = |code| is_local(&io::Error::from_raw_os_error(code));
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL, libc::EACCES] {
            assert!(local(code), "{code}");
        }
        for code in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ETIMEDOUT, libc::EPIPE] {
            assert!(!local(code), "{code}");
        }
        assert!(!is_starved());
        assert_eq!(or_starved(io::ErrorKind::NotFound.into()).kind(), io::ErrorKind::NotFound);
    }
}
