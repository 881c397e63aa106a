//! What the server answers on its control socket.

use dedup_cli::control::{GcAction, Request, Response};
use dedup_volume::Volume;
use serde_json::Value;

/// Answers one request.
pub(crate) fn answer(volume: &Volume, request: Request) -> Response {
    let value = match request {
        Request::Status => serde_json::to_value(volume.status()),
        Request::Gc { action: GcAction::Start | GcAction::Stop } if volume.is_read_only() => {
            return Response::Error("the volume takes no writes, so nothing can be collected".to_owned());
        }
        Request::Gc { action: GcAction::Start } => {
            volume.gc_start();
            serde_json::to_value(volume.status().gc)
        }
        Request::Gc { action: GcAction::Stop } => {
            volume.gc_stop();
            serde_json::to_value(volume.status().gc)
        }
        Request::Gc { action: GcAction::Estimate } => match volume.gc_estimate() {
            Ok(estimate) => serde_json::to_value(estimate),
            Err(error) => return Response::Error(dedup_cli::exit::chain(&error)),
        },
    };
    response(value)
}

fn response(value: serde_json::Result<Value>) -> Response {
    value.map_or_else(|error| Response::Error(error.to_string()), Response::Ok)
}
