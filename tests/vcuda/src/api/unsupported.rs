//! Functions that exist so that a caller gets an error instead of a missing symbol.

use super::exports;
use crate::codes::Code;

macro_rules! unsupported {
    ($($name:ident)*) => {
        exports! {$(
            /// Not modelled.
            fn $name(driver) {
                driver.refuse(Code::NotSupported, concat!(stringify!($name), " is not modelled"))
            }
        )*}
    };
}

unsupported! {
    cuDestroyExternalMemory
    cuExternalMemoryGetMappedBuffer
    cuImportExternalMemory
    cuMemAdvise_v2
    cuMemAllocManaged
    cuMemPoolCreate
    cuMemPoolDestroy
    cuMemPoolGetAttribute
    cuMemPrefetchAsync_v2
    cuOccupancyMaxPotentialBlockSize
    cuOccupancyMaxPotentialBlockSizeWithFlags
    cuStreamAttachMemAsync
}
