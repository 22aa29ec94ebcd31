/* Inert stand-ins for libnvinfer, libnvinfer_plugin and libnvonnxparser.
 *
 * They export only the C symbols that NVIDIA's real Python extension leaves undefined, so that the
 * extension can be imported where neither TensorRT's native libraries nor a GPU is, to look at its
 * classes. Factories return NULL; nothing here can build or run an engine.
 *
 * One translation unit, three libraries: -DLIB_NVINFER, -DLIB_PLUGIN or -DLIB_PARSER. */
#include <stddef.h>
#include <stdint.h>

#ifdef LIB_NVINFER
void   *createInferBuilder_INTERNAL(void *logger, int32_t version) { (void)logger; (void)version; return NULL; }
void   *createInferRuntime_INTERNAL(void *logger, int32_t version) { (void)logger; (void)version; return NULL; }
void   *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) { (void)engine; (void)logger; (void)version; return NULL; }
void   *getPluginRegistry(void)               { return NULL; }
void   *getBuilderPluginRegistry(int32_t cap) { (void)cap; return NULL; }
int32_t getInferLibVersion(void)              { return 0; }
void   *getLogger(void)                       { return NULL; }
#endif

#ifdef LIB_PLUGIN
_Bool   initLibNvInferPlugins(void *logger, const char *ns) { (void)logger; (void)ns; return 0; }
#endif

#ifdef LIB_PARSER
void   *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { (void)network; (void)logger; (void)version; return NULL; }
void   *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t version) { (void)refitter; (void)logger; (void)version; return NULL; }
int     getNvOnnxParserVersion(void)          { return 0; }
#endif
