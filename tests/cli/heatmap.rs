//! Pictures: their size, which way up they are, and what is refused.

use image::{Rgb, RgbImage};

use crate::support::{Bench, Tensor, data};

/// One layer whose row 0 has all its attention on `hot`: `[1, 1, tokens, tokens]`; other rows attend to themselves.
fn row_0_on(hot: usize, tokens: usize) -> Tensor {
    let values = (0..tokens * tokens).map(|index| {
        let (row, column) = (index / tokens, index % tokens);
        let target = if row == 0 { hot } else { row };
        f32::from(u8::from(column == target))
    });
    Tensor::f32(&[1, 1, tokens, tokens], values)
}

fn open(bench: &Bench, name: &str) -> RgbImage {
    image::open(bench.path(name)).unwrap().into_rgb8()
}

/// Left, top, right and bottom of the pixels that `is_hot`, the last two exclusive.
fn bounds(picture: &RgbImage, is_hot: impl Fn(Rgb<u8>) -> bool) -> [u32; 4] {
    let hot = picture.enumerate_pixels().filter(|(_, _, p)| is_hot(**p));
    hot.fold([u32::MAX, u32::MAX, 0, 0], |[l, t, r, b], (x, y, _)| {
        [l.min(x), t.min(y), r.max(x + 1), b.max(y + 1)]
    })
}

/// The upper end of the colour map inferno.
const INFERNO_HIGH: Rgb<u8> = Rgb([252, 255, 164]);
/// The upper end of the colour map viridis.
const VIRIDIS_HIGH: Rgb<u8> = Rgb([253, 231, 37]);

fn is_near(a: Rgb<u8>, b: Rgb<u8>) -> bool {
    (0..3).all(|i| a.0[i].abs_diff(b.0[i]) <= 3)
}

#[test]
fn hot_patch_is_where_it_belongs() {
    let bench = Bench::new();
    // Patch (row, column) of a 2x3 grid behind the CLS token, and where it lies in a map of 3 * 149 by 2 * 149.
    for (row, column) in [(0, 0), (0, 2), (1, 0), (1, 1)] {
        let hot = 1 + row * 3 + column;
        let input = bench.write("in.safetensors", &[("layer.0", row_0_on(hot, 7))]);
        bench
            .run(&input, "--heatmap map.png --grid 2x3")
            .expect_status(0);
        let map = open(&bench, "map.png");
        assert_eq!(map.dimensions(), (447, 298));
        let (x, y) = (149 * column as u32, 149 * row as u32);
        let found = bounds(&map, |pixel| is_near(pixel, INFERNO_HIGH));
        assert_eq!(found, [x, y, x + 149, y + 149]);
    }
}

#[test]
fn photo_keeps_its_size_and_lights_up_at_the_hot_patch() {
    let bench = Bench::new();
    let grey = RgbImage::from_pixel(90, 40, Rgb([128; 3]));
    grey.save(bench.path("photo.png")).unwrap();
    for filter in ["nearest", "bilinear"] {
        // Upper right of 4 x 4 patches.
        let input = bench.write("in.safetensors", &[("layer.0", row_0_on(4, 17))]);
        let options = format!("--heatmap heat.png --image photo.png --filter {filter}");
        bench.run(&input, &options).expect_status(0);
        let heat = open(&bench, "heat.png");
        assert_eq!(heat.dimensions(), (90, 40));
        let [left, top, right, bottom] = bounds(&heat, |pixel| pixel.0[1] > 128);
        assert!(left >= 60 && top == 0 && right == 90 && bottom <= 15);
    }
    let input = bench.write("in.safetensors", &[("layer.0", row_0_on(4, 17))]);
    let options = "--heatmap heat.png --image photo.png --colorbar";
    bench.run(&input, options).expect_status(0);
    assert_eq!(open(&bench, "heat.png").dimensions(), (90, 80));
}

#[test]
fn matrix_has_queries_downwards_and_keys_to_the_right() {
    let bench = Bench::new();
    let input = bench.write("in.safetensors", &[("layer.0", row_0_on(9, 10))]);
    let matrix = "--output-kind matrix --attention-weight 1 --identity-weight 0";
    // Of all rows only row 0 leaves the diagonal, so the last column is hot in its first and its last row.
    for options in [matrix.to_owned(), format!("{matrix} --tokens tokens.json")] {
        let labels: Vec<String> = (0..10).map(|i| format!("word{i}")).collect();
        std::fs::write(
            bench.path("tokens.json"),
            serde_json::to_vec(&labels).unwrap(),
        )
        .unwrap();
        bench
            .run(&input, &format!("{options} --heatmap m.png"))
            .expect_status(0);
        let picture = open(&bench, "m.png");
        let hot = |x: u32, y: u32| is_near(*picture.get_pixel(x, y), VIRIDIS_HIGH);
        // The hot cells span the whole matrix; its colour bar ends in the same colour further down.
        let cell = 28;
        let [left, top, ..] = bounds(&picture, |pixel| is_near(pixel, VIRIDIS_HIGH));
        let at = |row: u32, column: u32| {
            let first_column = left - cell; // row 1 is the leftmost hot row, in column 1
            hot(first_column + column * cell + 14, top + row * cell + 14)
        };
        assert!(at(0, 9), "row 0 attends to the last token");
        assert!(!at(0, 0) && !at(9, 0), "nobody attends to token 0");
        assert!((1..10).all(|i| at(i, i)));
    }
}

#[test]
fn text_leaves_out_padding() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let tokens = data("minilm_batch4_tokens.json");
    let all = format!("--heatmap all.png --item 1 --tokens {}", tokens.display());
    bench.run(&input, &all).expect_status(0);

    let lists: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&tokens).unwrap()).unwrap();
    let valid = &lists["tokens"][1].as_array().unwrap()[..14];
    let lists = serde_json::json!([[], valid]);
    std::fs::write(bench.path("valid.json"), lists.to_string()).unwrap();
    let few = "--heatmap few.png --item 1 --tokens valid.json";
    bench.run(&input, few).expect_status(0);
    assert_eq!(open(&bench, "all.png"), open(&bench, "few.png"));
}

#[test]
fn labels_of_any_kind_are_drawn() {
    let bench = Bench::new();
    let labels = serde_json::json!([[
        "[CLS]",
        "Ġnaïve",
        "▁größe",
        "",
        "\u{0}\n\t",
        "注意",
        "🙂",
        "x".repeat(5000)
    ]]);
    std::fs::write(bench.path("t.json"), labels.to_string()).unwrap();
    let input = bench.write("in.safetensors", &[("layer.0", Tensor::maps(1, 2, 8, 1))]);
    for kind in ["rows", "matrix"] {
        let options = format!("--heatmap {kind}.png --tokens t.json --output-kind {kind}");
        bench.run(&input, &options).expect_status(0);
        assert!(open(&bench, &format!("{kind}.png")).width() <= 1200);
    }
}

#[test]
fn values_without_a_colour() {
    let bench = Bench::new();
    let same = Tensor::f32(&[1, 1, 5, 5], vec![0.0; 25]);
    let mut nan = vec![0.2; 25];
    nan[3] = f32::NAN;
    for maps in [same, Tensor::f32(&[1, 1, 5, 5], nan)] {
        let input = bench.write("in.safetensors", &[("layer.0", maps)]);
        for kind in ["rows", "matrix"] {
            let options = format!("--heatmap {kind}.png --output-kind {kind}");
            bench.run(&input, &options).expect_status(0);
        }
    }
    // Row 0, token 3: patch 2 of 2 x 2, lower left, where the second file has NaN.
    let grey = open(&bench, "rows.png").get_pixel(10, 400).0;
    assert_eq!(grey, [110; 3]);
}

#[test]
fn heatmap_without_output_computes_only_its_item() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let tokens = data("minilm_batch4_tokens.json");
    let options = format!("--heatmap both.png --item 2 --tokens {}", tokens.display());
    bench.run(&input, &options).expect_status(0);
    assert_eq!(bench.files(), ["both.png", "out.safetensors"]);

    let only = [
        "run",
        input.to_str().unwrap(),
        "--heatmap",
        "only.png",
        "--item",
        "2",
    ];
    let tokens = ["--tokens", tokens.to_str().unwrap()];
    bench
        .command(only.into_iter().chain(tokens))
        .expect_status(0);
    assert_eq!(open(&bench, "both.png"), open(&bench, "only.png"));
}

#[test]
fn wrong_pictures_are_refused_and_nothing_is_written() {
    let bench = Bench::new();
    let maps = Tensor::maps(2, 1, 6, 1);
    let one = bench.write("one.safetensors", &[("layer.0", maps.clone())]);
    let two = bench.write(
        "two.safetensors",
        &[("a/layer.0", maps.clone()), ("b/layer.0", maps)],
    );
    std::fs::write(bench.path("short.json"), r#"[["a", "b"]]"#).unwrap();
    std::fs::write(bench.path("mixed.json"), r#"{"tokens": [["a", 1]]}"#).unwrap();
    std::fs::write(bench.path("flat.json"), r#"["a", "b", "c", "d", "e", "f"]"#).unwrap();
    std::fs::write(bench.path("text.json"), "tokens").unwrap();
    std::fs::write(bench.path("broken.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let before = bench.files();
    for (input, options, parts) in [
        (&one, "", &["--tokens", "--grid", "got 5 of 6 tokens"][..]),
        (&one, "--grid 2x2", &["--grid", "got 2x2 for 5 of 6 tokens"]),
        (&one, "--grid 0x5", &["--grid", "14x14"]),
        (
            &one,
            "--grid 1x5 --item 2",
            &["--item", "batch of 2", "got 2"],
        ),
        (
            &one,
            "--grid 1x5 --rows 0,1",
            &["one start row", "got 2 rows"],
        ),
        (
            &one,
            "--output-kind cumulative",
            &["rows or matrix", "got cumulative"],
        ),
        (&one, "--grid 1x5 --image broken.png", &["broken.png"]),
        (
            &one,
            "--grid 1x5 --image missing.png",
            &["missing.png", "No such file"],
        ),
        (
            &one,
            "--tokens flat.json --image broken.png",
            &["--image", "got --tokens"],
        ),
        (
            &one,
            "--output-kind matrix --image broken.png",
            &["--image", "matrix"],
        ),
        (
            &one,
            "--tokens short.json",
            &["short.json", "expected 6 tokens", "got 2"],
        ),
        (
            &one,
            "--tokens short.json --item 1",
            &["tokens of item 1", "got 1 items"],
        ),
        (
            &one,
            "--tokens mixed.json",
            &["mixed.json", "lists of strings"],
        ),
        (&one, "--tokens text.json", &["text.json", "not JSON"]),
        (
            &one,
            "--grid 1x5 --clip-percentile 0",
            &["percentile from 1 to 100"],
        ),
        (
            &two,
            "--grid 1x5",
            &["--feature", "a/", "b/", "got several"],
        ),
    ] {
        let options = format!("--heatmap heat.png {options}");
        bench.run(input, &options).expect_failure(2, parts);
        assert_eq!(bench.files(), before, "{options}");
    }
    bench
        .run(&one, "--grid 1x5 --heatmap missing/heat.png")
        .expect_failure(1, &["missing/heat.png"]);
    bench
        .run(&one, "--grid 1x5 --heatmap out.safetensors")
        .expect_failure(2, &["--heatmap", "a file of its own"]);
    assert_eq!(bench.files(), before);
    bench
        .command(["run", "one.safetensors"])
        .expect_failure(2, &["--output"]);
}
