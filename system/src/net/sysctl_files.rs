//! What the files of `sysctl.d(5)` say: what the administrator wants kernel parameters to be, whoever has
//! set them since.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::setup::Paths;
use super::sysctl;

/// What all interfaces forward is another name of whether the host does.
const IPV4_FORWARD_TOO: &str = "net/ipv4/conf/all/forwarding";

/// The file that has a parameter switched on, if the last one that names it does.
pub(super) fn switched_on_by(paths: &Paths, key: &str) -> Option<PathBuf> {
    let mut found = None;
    for file in files(paths) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        if let Some(is_on) = text
            .lines()
            .filter_map(|line| switch(line, key))
            .next_back()
        {
            found = is_on.then_some(file);
        }
    }
    found
}

/// The files in their order. Of equal names the first folder's counts; what is no folder comes last.
fn files(paths: &Paths) -> Vec<PathBuf> {
    let (mut by_name, mut last) = (BTreeMap::new(), Vec::new());
    for path in &paths.sysctl_files {
        let Ok(entries) = fs::read_dir(path) else {
            last.push(path.clone());
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().ends_with(".conf") {
                by_name.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    by_name.into_values().chain(last).collect()
}

/// Whether a line switches the parameter on or off; none if it is about something else.
fn switch(line: &str, key: &str) -> Option<bool> {
    let line = line.trim();
    // An error in setting it is to be passed over.
    let line = line.strip_prefix('-').unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let name = name.trim().replace('.', "/");
    let is_it = name == key || key == sysctl::IPV4_FORWARD && name == IPV4_FORWARD_TOO;
    is_it.then(|| value.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_that_names_a_parameter_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let paths = Paths {
            sysctl_files: ["etc", "lib", "sysctl.conf", "none"].map(file).into(),
            ..Paths::default()
        };
        fs::create_dir(file("etc")).unwrap();
        fs::create_dir(file("lib")).unwrap();
        let write = |name: &str, text: &str| fs::write(file(name), text).unwrap();
        let found = |key| switched_on_by(&paths, key);
        assert_eq!(found(sysctl::IPV4_FORWARD), None);
        write(
            "lib/50.conf",
            "# net.ipv4.ip_forward = 0\n-net/ipv4/ip_forward=1\nnonsense\n",
        );
        write("lib/60.conf", "net.ipv6.conf.all.forwarding = 1\n");
        write("lib/70.txt", "net.ipv4.ip_forward = 0\n");
        assert_eq!(found(sysctl::IPV4_FORWARD), Some(file("lib/50.conf")));
        assert_eq!(found(sysctl::IPV6_FORWARD), Some(file("lib/60.conf")));
        write("etc/60.conf", "net.ipv4.conf.all.forwarding=0\n");
        assert_eq!(found(sysctl::IPV4_FORWARD), None);
        assert_eq!(found(sysctl::IPV6_FORWARD), None);
        write("sysctl.conf", " net.ipv4.ip_forward=1\n");
        assert_eq!(found(sysctl::IPV4_FORWARD), Some(file("sysctl.conf")));
    }
}
