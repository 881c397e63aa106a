//! Serves an export that stores nothing, to measure what the server itself costs.
//!
//! ```text
//! null_server /tmp/null.sock [GiB] [threads a connection]
//! fio --name=x --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/null.sock' --rw=randwrite --bs=4k --iodepth=32
//! ```
//!
//! It ends, with its totals, when its standard input does.

use dedup_nbd_server::{Listen, NullExport, Server};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: null_server SOCKET [GIB] [THREADS]")?;
    let size_gib: u64 = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let threads: usize = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let server = Server::builder()
        .export("", "stores nothing", Arc::new(NullExport::new(size_gib << 30)))
        .listen(Listen::unix(socket, 0o600))
        .threads_per_connection(threads)
        .serve()?;
    println!("{}", server.uri());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    println!("{:?}", server.stats());
    server.shutdown(Duration::from_secs(5));
    Ok(())
}
