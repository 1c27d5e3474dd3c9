//! Throw-away network namespaces for tests.

#![expect(unsafe_code, reason = "a thread enters a namespace of its own")]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::setup::Paths;
use crate::tun::{Tun, VNET_HEADER_LEN};

/// One test at a time: a program that another thread starts holds copies of all descriptors until
/// it runs, and with them devices and locks that are meant to be closed.
static TURN: Mutex<()> = Mutex::new(());

/// A network and mount namespace of the calling thread, which vanishes with it, and a directory.
pub(crate) struct Namespace {
    directory: tempfile::TempDir,
    pub(crate) paths: Paths,
}

/// Runs `test` in a new namespace; says `skipped: ...` where that is impossible.
pub(crate) fn run(test: impl FnOnce(&Namespace) + Send) {
    if !rustix::process::geteuid().is_root() {
        crate::testing::skip("needs root");
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        crate::testing::skip("needs /dev/net/tun");
        return;
    }
    let _turn = turn();
    let result = thread::scope(|scope| scope.spawn(|| enter().map(|ns| test(&ns))).join());
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => crate::testing::skip(&format!("cannot make a namespace: {error}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Keeps tests in namespaces from running.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enter() -> rustix::io::Result<Namespace> {
    // SAFETY: neither flag unshares the table of file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let paths = Paths {
        state_dir: file("state"),
        sysctl_files: vec![file("sysctl.conf")],
        resolv_conf: file("resolv.conf"),
        systemd_resolved: file("systemd-resolved"),
        resolvectl: file("resolvectl"),
        resolvconf: file("resolvconf"),
        ..Paths::default()
    };
    fs::write(&paths.resolv_conf, "nameserver 192.0.2.53\n").unwrap();
    let namespace = Namespace { directory, paths };
    namespace.shell("mount --make-rprivate /; ip link set lo up");
    Ok(namespace)
}

impl Namespace {
    /// A file in the test's directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a shell command in the namespace and returns its output.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = Command::new("sh").args(["-ec", script]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything that the daemons change, as text.
    pub(crate) fn snapshot(&self) -> String {
        self.shell(
            "ip -j addr; ip -j route show table all; ip -j -6 route show table all; \
             ip -j rule; ip -j -6 rule; nft list ruleset; \
             cd /proc/sys/net; grep -r . ipv4/ip_forward ipv4/conf/all ipv6/conf/*/forwarding \
             ipv6/conf/*/accept_ra",
        )
    }

    /// The interface that `ip route get` names, or its error.
    pub(crate) fn route(&self, arguments: &str) -> String {
        let script = format!("ip route get {arguments} 2>&1 || true");
        let answer = self.shell(&script);
        let mut words = answer.split_whitespace();
        match words.find(|&word| word == "dev") {
            Some(_) => words.next().unwrap_or_default().to_owned(),
            None => answer.trim().to_owned(),
        }
    }
}

/// Waits for an IPv4 packet of this protocol, and returns it with its virtio header.
pub(crate) fn receive(tun: &Tun, protocol: u8) -> (Vec<u8>, Option<[u8; VNET_HEADER_LEN]>) {
    let mut packet = vec![0; 65_536];
    loop {
        await_event(tun, PollFlags::IN);
        let received = tun.recv(&mut packet).unwrap();
        if packet[0] >> 4 == 4 && packet[9] == protocol {
            packet.truncate(received.len);
            return (packet, received.header);
        }
    }
}

/// Looks until something is so, for five seconds at most.
pub(crate) fn comes_true(is_so: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while !is_so() {
        if start.elapsed().as_secs() >= 5 {
            return false;
        }
        thread::yield_now();
    }
    true
}

/// Waits until a descriptor is ready.
pub(crate) fn await_event(source: &impl AsFd, events: PollFlags) {
    let timeout = Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(source, events)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing happens");
}

/// The internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2);
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(folded + (folded >> 16)) as u16).to_be_bytes()
}
