//! `lostlove demo` as root and as somebody without any rights.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use lostlove_tests::programs::program;
use lostlove_tests::{Driver, skip};
use tempfile::TempDir;

#[test]
fn the_demo_works_as_root_and_leaves_nothing_behind() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    let before = run_files();
    let output = Command::new(program("lostlove"))
        .args(["demo", "--megabytes", "20"])
        .output()
        .unwrap();
    assert_good(&output);
    assert_eq!(run_files(), before);
}

/// A chroot's root is no mount point, and the kernel allows no user namespaces in it.
#[test]
fn the_demo_works_as_root_of_a_chroot() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    let programs = copied_programs();
    let root = TempDir::new().unwrap();
    // The mounts are the shell's own, and end with it.
    let script = r#"
        cd "$1"
        for folder in bin sbin lib lib64 usr etc dev proc sys run tmp; do
            [ ! -d /$folder ] || { mkdir $folder; mount --rbind /$folder $folder; }
        done
        mkdir programs
        mount --bind "$2" programs
        mount -t tmpfs tmpfs run
        exec chroot . /programs/lostlove demo --megabytes 20
    "#;
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            script,
            "sh",
        ])
        .args([root.path(), programs.path()])
        .output()
        .unwrap();
    assert_good(&output);
}

/// Copies of what the demo needs, for users who may not read the build directory.
fn copied_programs() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for source in [
        program("lostlove"),
        Driver::Mio.server(),
        Driver::Mio.client(),
    ] {
        fs::copy(&source, dir.path().join(source.file_name().unwrap())).unwrap();
    }
    dir
}

/// Case 105.
#[test]
fn the_demo_works_without_root() {
    let dir = copied_programs();
    let demo = dir.path().join("lostlove");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(demo);
        command
    } else {
        Command::new(demo)
    };
    let output = command
        .args(["demo", "--megabytes", "20", "--suite", "aes-256-gcm"])
        .output()
        .unwrap();
    if output.status.code() == Some(77) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("run this as root") || text.contains("run as root"),
            "{text}"
        );
        skip(&text);
        return;
    }
    assert_good(&output);
}

#[track_caller]
fn assert_good(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("100 of 100      100 of 100"), "{text}");
    assert!(text.contains("equal           equal"), "{text}");
}

/// Where daemons keep their state, and the demo its keys.
fn run_files() -> BTreeSet<String> {
    fs::read_dir("/run")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}
