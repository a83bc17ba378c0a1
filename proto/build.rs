//! Compiles the wire definition without protoc (protox), keeping payloads as `Bytes`, and writes the descriptor set
//! that reflection serves.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=sealdrive");
    let files = protox::compile(["sealdrive/v1/sealdrive.proto"], ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".sealdrive.v1")
        .compile_fds(files)?;
    Ok(())
}
