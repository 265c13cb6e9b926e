//! Functions, launches and occupancy.

use super::{Out, exports};
use crate::{
    codes::Code,
    driver::Driver,
    launch::{Arguments, Shape, check},
    models::Model,
    modules::Function,
    occupancy::{blocks_per_multiprocessor, dynamic_shared_for},
};
use std::{ffi::c_void, sync::Arc};

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: u64,
    attributes: *const LaunchAttribute,
    attribute_count: u32,
}

/// `CUlaunchAttribute`; the value's union is read as 32-bit words.
#[repr(C, align(8))]
pub struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

type ArgumentList = *const *const c_void;

exports! {
    /// Launches a kernel.
    fn cuLaunchKernel(
        driver,
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: u64,
        params: ArgumentList,
        extra: ArgumentList,
    ) {
        let stream = driver.stream_of(stream)?;
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            cooperative: false,
            dynamic_shared,
        };
        // SAFETY: the caller's promise, passed on.
        let arguments = unsafe { Arguments::new(params, extra) };
        driver.launch(stream, function, shape, arguments)
    }

    /// Launches a kernel whose blocks all run together.
    fn cuLaunchCooperativeKernel(
        driver,
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: u64,
        params: ArgumentList,
    ) {
        let stream = driver.stream_of(stream)?;
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            cooperative: true,
            dynamic_shared,
        };
        // SAFETY: the caller's promise, passed on.
        let arguments = unsafe { Arguments::new(params, std::ptr::null()) };
        driver.launch(stream, function, shape, arguments)
    }

    /// Launches a kernel with attributes.
    fn cuLaunchKernelEx(
        driver,
        config: *const LaunchConfig,
        function: u64,
        params: ArgumentList,
        extra: ArgumentList,
    ) {
        // SAFETY: the caller promises null or a valid configuration.
        let config = unsafe { config.as_ref() }.ok_or(Code::InvalidValue)?;
        let stream = driver.stream_of(config.stream)?;
        let shape = config.shape(driver)?;
        // SAFETY: the caller's promise, passed on.
        let arguments = unsafe { Arguments::new(params, extra) };
        driver.launch(stream, function, shape, arguments)
    }

    /// A property of a function.
    fn cuFuncGetAttribute(driver, value: Out<i32>, attribute: u32, function: u64) {
        let (function, model) = function_and_model(driver, function)?;
        value.set(function.attribute(attribute, &model).ok_or(Code::InvalidValue)?)
    }

    /// Changes a property of a function.
    fn cuFuncSetAttribute(driver, function: u64, attribute: u32, value: i32) {
        let (function, model) = function_and_model(driver, function)?;
        let set = function.set_attribute(attribute, value, &model);
        set.or_else(|why| driver.refuse(Code::InvalidValue, why))
    }

    /// Accepted without effect.
    fn cuFuncSetCacheConfig(driver, function: u64, _config: u32) {
        driver.function(function).map(drop)
    }

    /// Blocks that fit a multiprocessor; registers are not modelled.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        driver,
        blocks: Out<i32>,
        function: u64,
        threads: i32,
        dynamic_shared: usize,
    ) {
        blocks.set(occupancy(driver, function, threads, dynamic_shared)?)
    }

    /// The same; the flag is about caching.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        driver,
        blocks: Out<i32>,
        function: u64,
        threads: i32,
        dynamic_shared: usize,
        _flags: u32,
    ) {
        blocks.set(occupancy(driver, function, threads, dynamic_shared)?)
    }

    /// Dynamic shared memory that keeps so many blocks on a multiprocessor.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        driver,
        bytes: Out<usize>,
        function: u64,
        blocks: i32,
        threads: i32,
    ) {
        let (function, model) = function_and_model(driver, function)?;
        let blocks = u32::try_from(blocks).map_err(|_| Code::InvalidValue)?;
        let threads = u32::try_from(threads).map_err(|_| Code::InvalidValue)?;
        bytes.set(dynamic_shared_for(&model, blocks, threads, function.static_shared()) as usize)
    }

    /// Clusters of the configuration that fit the device, if they could be packed without gaps.
    fn cuOccupancyMaxActiveClusters(
        driver,
        clusters: Out<i32>,
        function: u64,
        config: *const LaunchConfig,
    ) {
        // SAFETY: the caller promises null or a valid configuration.
        let config = unsafe { config.as_ref() }.ok_or(Code::InvalidValue)?;
        let (function, model) = function_and_model(driver, function)?;
        let shape = config.shape(driver)?;
        if let Err((code, why)) = check(&model, &function, &shape) {
            return driver.refuse(code, why);
        }
        let compiled = function.kernel()?.cluster.map(|cluster| cluster.count() as u32);
        let size = shape.cluster.map(|cluster| cluster.iter().product()).or(compiled).unwrap_or(1);
        let shared = function.static_shared() + shape.dynamic_shared;
        let threads = shape.block.iter().product();
        let blocks = blocks_per_multiprocessor(&model, threads, shared) * model.multiprocessors;
        clusters.set((blocks / size.max(1)) as i32)
    }

    /// Largest cluster the function may be launched with.
    fn cuOccupancyMaxPotentialClusterSize(
        driver,
        size: Out<i32>,
        function: u64,
        config: *const LaunchConfig,
    ) {
        if config.is_null() {
            return Err(Code::InvalidValue);
        }
        let (function, model) = function_and_model(driver, function)?;
        if !model.has_clusters() {
            return Err(Code::NotSupported);
        }
        size.set(function.max_cluster(&model) as i32)
    }
}

fn function_and_model(driver: &Driver, function: u64) -> Result<(Arc<Function>, Model), Code> {
    let function = driver.function(function)?;
    let model = driver.model(function.context)?;
    Ok((function, model))
}

fn occupancy(driver: &Driver, function: u64, threads: i32, dynamic: usize) -> Result<i32, Code> {
    let (function, model) = function_and_model(driver, function)?;
    let threads = u32::try_from(threads)
        .ok()
        .filter(|&threads| threads > 0)
        .ok_or(Code::InvalidValue)?;
    if threads > function.max_threads() || dynamic > function.max_dynamic_shared() as usize {
        return Ok(0);
    }
    let shared = function.static_shared() + dynamic as u32;
    Ok(blocks_per_multiprocessor(&model, threads, shared) as i32)
}

impl LaunchConfig {
    /// The shape it describes. Attributes that only affect speed are ignored; one that would change the
    /// meaning and is not modelled is refused.
    fn shape(&self, driver: &mut Driver) -> Result<Shape, Code> {
        let mut shape = Shape {
            grid: self.grid,
            block: self.block,
            cluster: None,
            cooperative: false,
            dynamic_shared: self.dynamic_shared,
        };
        if self.attribute_count > 0 && self.attributes.is_null() {
            return Err(Code::InvalidValue);
        }
        for index in 0..self.attribute_count as usize {
            // SAFETY: the caller promises so many attributes.
            let attribute = unsafe { &*self.attributes.add(index) };
            match attribute.id {
                // Nothing, access policy, scheduling policies, priority, memory domains, preferred cluster
                // and carve-out.
                0 | 1 | 3 | 5 | 8 | 9 | 10 | 11 | 14 => {}
                2 => shape.cooperative = attribute.value[0] != 0,
                4 => {
                    let [x, y, z] = [attribute.value[0], attribute.value[1], attribute.value[2]];
                    shape.cluster = (x != 0).then_some([x, y, z]);
                }
                // Overlap with the kernel before is allowed, never owed.
                6 => {}
                id => {
                    return driver.refuse(
                        Code::NotSupported,
                        format!("launch attribute {id} is not modelled"),
                    );
                }
            }
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn structures_are_laid_out_as_in_the_header() {
        assert_eq!(size_of::<LaunchAttribute>(), 72);
        assert_eq!(offset_of!(LaunchAttribute, value), 8);
        assert_eq!(offset_of!(LaunchConfig, dynamic_shared), 24);
        assert_eq!(offset_of!(LaunchConfig, stream), 32);
        assert_eq!(offset_of!(LaunchConfig, attributes), 40);
        assert_eq!(size_of::<LaunchConfig>(), 56);
    }
}
