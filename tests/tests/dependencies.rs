//! The crates that LostLove is made of are what `deny.toml` allows: what of it can be judged without
//! a network and without cargo-deny.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::env;
use std::process::Command;

use lostlove_tests::programs::workspace;
use serde::Deserialize;
use spdx::{Expression, ParseMode};

/// `deny.toml`, as far as it is judged here.
#[derive(Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

impl Policy {
    fn of_this_tree() -> Self {
        let text = std::fs::read_to_string(workspace().join("deny.toml")).unwrap();
        toml::from_str(&text).unwrap()
    }

    /// What is wrong with a package.
    fn objection(&self, package: &Package) -> Option<String> {
        if self
            .bans
            .deny
            .iter()
            .any(|banned| banned.name == package.name)
        {
            return Some("is banned".to_owned());
        }
        if let Some(source) = &package.source {
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !self.sources.allow_registry.iter().any(|it| it == registry) {
                return Some(format!("comes from {source}"));
            }
        }
        let license = package.license.as_deref().unwrap_or_default();
        (!self.allows(license)).then(|| format!("has the licence {license:?}"))
    }

    /// Whether the licences that a package has suffice, those of a choice being one.
    fn allows(&self, license: &str) -> bool {
        let Ok(expression) = Expression::parse_mode(license, ParseMode::LAX) else {
            return false;
        };
        expression.evaluate(|license| {
            let id = license.license.id();
            license.addition.is_none()
                && id.is_some_and(|id| self.licenses.allow.iter().any(|it| it == id.name))
        })
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    source: Option<String>,
}

impl Metadata {
    /// Of all that `Cargo.lock` has for the targets of the policy.
    fn of_this_tree(policy: &Policy) -> Self {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(workspace())
            .args(["metadata", "--locked", "--format-version=1"]);
        for target in &policy.graph.targets {
            cargo.args(["--filter-platform", target]);
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn every_crate_is_allowed() {
    let policy = Policy::of_this_tree();
    let packages = Metadata::of_this_tree(&policy).packages;
    assert!(
        packages
            .iter()
            .any(|package| package.name == "lostlove-core")
    );
    let objections: Vec<_> = packages
        .iter()
        .filter_map(|package| Some(format!("{} {}", package.name, policy.objection(package)?)))
        .collect();
    assert_eq!(objections, [""; 0]);
}

#[test]
fn what_the_policy_does_not_allow_is_noticed() {
    let policy = Policy::of_this_tree();
    let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
    let good = Package {
        name: "good".to_owned(),
        license: Some("MIT/Apache-2.0".to_owned()),
        source: Some(crates_io.to_owned()),
    };
    assert_eq!(policy.objection(&good), None);
    let tokio = Package {
        name: "tokio".to_owned(),
        ..good.clone()
    };
    assert!(policy.objection(&tokio).is_some());
    let git = Some("git+https://example.org/good".to_owned());
    let elsewhere = Package {
        source: git,
        ..good.clone()
    };
    assert!(policy.objection(&elsewhere).is_some());
    for (license, is_allowed) in [
        (Some("GPL-3.0-only"), false),
        (Some("MIT AND GPL-3.0-only"), false),
        (Some("Apache-2.0 WITH LLVM-exception"), false),
        (Some("no licence"), false),
        (None, false),
        (Some("MIT OR GPL-3.0-only"), true),
        (Some("(MIT OR Apache-2.0) AND Unicode-3.0"), true),
    ] {
        let license = license.map(str::to_owned);
        let package = Package {
            license,
            ..good.clone()
        };
        assert_eq!(
            policy.objection(&package).is_none(),
            is_allowed,
            "{:?}",
            package.license
        );
    }
}

/// What `core` shows to fuzzing, benchmarks and tests, no program needs.
#[test]
fn programs_are_built_without_cores_insides() {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo.args([
        "tree",
        "--locked",
        "--offline",
        "--edges",
        "features,normal",
    ]);
    for package in ["driver-mio", "driver-smol", "command", "sim"] {
        cargo.args(["--package", &format!("lostlove-{package}")]);
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("lostlove-core feature"), "{tree}");
    assert!(!tree.contains("internals"), "{tree}");
}
