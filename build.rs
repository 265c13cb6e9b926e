//! Embeds the kernel sources: writes `$OUT_DIR/kernels.rs`, a table of the `.cu` and `.cuh` files in `kernels/`. Their
//! paths are left to the compiler, so that a checkout may be moved together with its build folder.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    let kernels = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("kernels");
    let mut table = String::from("&[\n");
    for path in sources(&kernels)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(format!("{} is not a UTF-8 path", path.display()).into());
        };
        let file = format!("/kernels/{name}");
        writeln!(
            table,
            "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {file:?}))),"
        )?;
    }
    table.push(']');
    fs::write(Path::new(&env::var("OUT_DIR")?).join("kernels.rs"), table)?;
    Ok(())
}

/// The kernel sources in a folder, by name; none where the folder is missing.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "cu" || extension == "cuh")
    });
    paths.sort();
    Ok(paths)
}
