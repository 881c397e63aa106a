//! Each [property](dedup_tests::properties) by itself, without any fault: where the log carries no data, so
//! that what the data device loses or has damaged shows, and where it does, as volumes are served.

use dedup_tests::hooked::{WATCHDOG, watched};
use dedup_tests::{options, properties};
use dedup_volume::OpenOptions;

macro_rules! hold {
    ($options:expr, $($module:ident: $($property:ident),+;)*) => {
        $($(
            #[test]
            fn $property() {
                watched(WATCHDOG, || properties::$module::$property(&$options));
            }
        )+)*
    };
}

macro_rules! tests {
    ({ $($without_data:tt)* } { $($either_way:tt)* }) => {
        hold! { options(), $($without_data)* }
        hold! { options(), $($either_way)* }

        mod where_the_log_carries_data {
            use super::*;

            fn with_data() -> OpenOptions {
                OpenOptions { log_data: OpenOptions::default().log_data, ..options() }
            }

            hold! { with_data(), $($either_way)* }
        }
    };
}

dedup_tests::all_properties!(tests);
