//! What is left of images without the feature `download`.

use std::fs;

use super::*;

#[tokio::test]
async fn a_download_names_the_feature_and_files_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk.raw");
    fs::write(&file, [5; 4096]).unwrap();
    let catalogue = dir.path().join("catalogue.json");
    let sum = Sha256::of(&[5; 4096]);
    let entry = serde_json::json!({"url": format!("file://{}", file.display()), "sha256": sum});
    let text = serde_json::json!({"format": 1, "images": {"local": {"amd64": entry}}});
    fs::write(&catalogue, text.to_string()).unwrap();
    let store = Store::open(dir.path().join("state")).unwrap();
    let catalogue = Catalogue::load_with(Some(&catalogue)).unwrap();
    let images = Images::with_catalogue(&store, catalogue, Arch::Amd64);
    let pull = async |reference: &str| {
        let image = images.resolve(&reference.parse().unwrap()).unwrap();
        images.pull(&image, &crate::progress::Silent).await
    };
    for reference in ["debian-12", "https://example.org/disk.raw"] {
        let error = pull(reference).await.unwrap_err();
        assert!(
            matches!(error, ImageError::DownloadDisabled { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("feature `download`"), "{error}");
    }
    assert!(matches!(
        images.freshness("debian-12").await,
        Err(ImageError::DownloadDisabled { .. })
    ));
    assert_eq!(pull("local").await.unwrap().sha256, Some(sum));
    assert_eq!(pull(file.to_str().unwrap()).await.unwrap().path, file);
}
