//! Serves an export that stores nothing, to measure what the server itself costs. `tests/nbd-cost.py` is who
//! does.
//!
//! ```text
//! null_server /tmp/null.sock [WORD...]
//! fio --name=x --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/null.sock' --rw=randwrite --bs=4k --iodepth=32
//!
//! filled          reads give ones instead of zeros, which the client would be told of as holes
//! digest=sha256   (or another algorithm) computes the digest of what is written, block by block
//! threads=N       most threads a connection
//! ```
//!
//! The export has 8 GiB. The server ends, with its totals, when its standard input does.

use dedup_nbd_server::{Export, Listen, NullExport, Server};
use dedup_volume::{DigestAlgorithm, Op, Request, RequestError, Wanted};
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 8 << 30;

/// A null export that does a volume's least.
struct Almost {
    null: NullExport,
    filled: bool,
    digest: Option<DigestAlgorithm>,
}

impl Export for Almost {
    fn size(&self) -> u64 {
        self.null.size()
    }

    fn block_size(&self) -> u32 {
        self.null.block_size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        self.null.execute(wanted, batch, &mut |mut request, result| {
            match &mut request.op {
                Op::Read { buf, .. } if self.filled => buf.fill(1),
                Op::Write { data, .. } => {
                    if let Some(algorithm) = self.digest {
                        data.chunks(self.block_size() as usize).for_each(|block| {
                            black_box(algorithm.digest(block));
                        });
                    }
                }
                _ => {}
            }
            done(request, result);
        });
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: null_server SOCKET [WORD...]")?;
    let mut export = Almost { null: NullExport::new(SIZE), filled: false, digest: None };
    let mut threads = None;
    for word in args {
        match word.split_once('=') {
            None if word == "filled" => export.filled = true,
            Some(("digest", algorithm)) => export.digest = Some(algorithm.parse()?),
            Some(("threads", count)) => threads = Some(count.parse()?),
            _ => return Err(format!("{word}: what is that?").into()),
        }
    }
    let mut builder =
        Server::builder().export("", "stores nothing", Arc::new(export)).listen(Listen::unix(socket, 0o600));
    if let Some(threads) = threads {
        builder = builder.threads_per_connection(threads);
    }
    let server = builder.serve()?;
    println!("{}", server.uri());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    println!("{:?}", server.stats());
    server.shutdown(Duration::from_secs(5));
    Ok(())
}
