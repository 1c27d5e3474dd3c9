//! Writes the seeds of every target into the folder named by the first argument.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(
        env::args_os()
            .nth(1)
            .unwrap_or_else(|| "fuzz/corpus".into()),
    );
    for (target, _) in lostlove_fuzz::TARGETS {
        fs::create_dir_all(folder.join(target))?;
        for (number, seed) in lostlove_fuzz::seeds::seeds(target).iter().enumerate() {
            fs::write(folder.join(target).join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
