//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The runtime that a daemon is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `lostlove-server`, `lostlove-client`.
    Mio,
    /// `lostlove-server-smol`, `lostlove-client-smol`.
    Smol,
}

impl Driver {
    /// The driver that the environment names for the servers under test.
    pub fn of_server() -> Self {
        Self::from_env("LOSTLOVE_TEST_SERVER")
    }

    /// The driver that the environment names for the clients under test.
    pub fn of_client() -> Self {
        Self::from_env("LOSTLOVE_TEST_CLIENT")
    }

    fn from_env(variable: &str) -> Self {
        match env::var(variable).as_deref() {
            Err(_) | Ok("mio") => Self::Mio,
            Ok("smol") => Self::Smol,
            Ok(other) => panic!("{variable} is {other}, expected mio or smol"),
        }
    }

    /// The server's program.
    pub fn server(self) -> PathBuf {
        program(match self {
            Self::Mio => "lostlove-server",
            Self::Smol => "lostlove-server-smol",
        })
    }

    /// The client's program.
    pub fn client(self) -> PathBuf {
        program(match self {
            Self::Mio => "lostlove-client",
            Self::Smol => "lostlove-client-smol",
        })
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Mio => "lostlove-driver-mio",
            Self::Smol => "lostlove-driver-smol",
        }
    }
}

/// The path of a program of this workspace, freshly built unless `LOSTLOVE_BIN_DIR` is set.
pub fn program(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| env::var_os("LOSTLOVE_BIN_DIR").map_or_else(build, PathBuf::from));
    let path = dir.join(name);
    assert!(path.is_file(), "{} does not exist", path.display());
    path
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Builds the programs in the profile of the running test, whose executable is in
/// `target/PROFILE/deps`. Cargo itself offers a test only the programs of its own package.
fn build() -> PathBuf {
    let test = env::current_exe().unwrap();
    let dir = test.ancestors().nth(2).unwrap();
    let profile = match dir.file_name().and_then(|name| name.to_str()).unwrap() {
        "debug" => "dev",
        other => other,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--quiet"]);
    cargo.args(["--profile", profile, "--package", "lostlove-command"]);
    cargo.args(["--package", "lostlove-load"]);
    // Both, whichever the environment names: a test may name one itself.
    for driver in [Driver::Mio, Driver::Smol] {
        cargo.args(["--package", driver.package()]);
    }
    assert!(cargo.status().unwrap().success(), "{cargo:?} failed");
    dir.to_owned()
}
