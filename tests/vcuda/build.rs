//! Names the library as the real driver is named, so that `dlopen("libcuda.so")` finds it once it is loaded.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
