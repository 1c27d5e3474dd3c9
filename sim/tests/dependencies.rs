//! A simulated world has nothing with which it could reach the machine that it runs on.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::env;
use std::process::Command;

/// The packages that the simulator is built from, its tests included.
fn packages() -> Vec<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--package", "lostlove-sim", "--offline", "--locked"])
        .args(["--edges", "normal,build,dev", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let names = lines.lines().filter_map(|line| line.split(' ').next());
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_simulator_needs_nothing_that_talks_to_the_system() {
    let packages = packages();

    let own = packages.iter().filter(|name| name.starts_with("lostlove-"));
    let own: Vec<_> = own.collect();
    assert_eq!(own, ["lostlove-core", "lostlove-pump", "lostlove-sim"]);
    let is_of_the_system = |name: &&String| {
        name.starts_with("netlink-")
            || ["mio", "rustix", "signal-hook", "socket2", "tun"].contains(&name.as_str())
    };
    let found: Vec<_> = packages.iter().filter(is_of_the_system).collect();
    assert_eq!(found, [] as [&String; 0]);
}
